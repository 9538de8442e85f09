"""Shell completion for svcctl, made from its parser: what it knows is completed, and nothing is written twice."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["bash", "zsh"]

#: What arguments are called whose values are names of files, or of directories.
_FILES = frozenset({"FILE", "PATH", "file"})
_FOLDERS = frozenset({"DIR"})


@dataclass(frozen=True, slots=True)
class _Argument:
    """An option, or an argument without a name.

    Attributes:
        names: of the option; none for an argument.
        help: a line about it.
        label: what its value is called; empty where it takes none.
        kind: of the value: words, files, folders or text.
        words: if these are all there are.
        arity: of an argument without a name, as argparse has it: ?, * or +; empty for one that must be there.
    """

    names: tuple[str, ...]
    help: str
    label: str
    kind: str
    words: tuple[str, ...]
    arity: str


@dataclass(frozen=True, slots=True)
class _Command:
    """The program itself, with an empty name, or one of its commands."""

    name: str
    help: str
    arguments: tuple[_Argument, ...]

    @property
    def options(self) -> Iterator[_Argument]:
        """Those with names."""
        return (each for each in self.arguments if each.names)

    @property
    def others(self) -> Iterator[_Argument]:
        """Those without."""
        return (each for each in self.arguments if not each.names)


def _actions(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    # argparse has no public way to look at a parser; this one has been there since it exists.
    return parser._actions  # noqa: SLF001


def _commands(parser: argparse.ArgumentParser) -> list[_Command]:
    """The program, then its commands."""
    found = [_Command("", "", _arguments(parser))]
    for action in _actions(parser):
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            helps = {choice.dest: choice.help or "" for choice in action._get_subactions()}  # noqa: SLF001 - as above
            found += [_Command(name, helps.get(name, ""), _arguments(each)) for name, each in action.choices.items()]
    return found


def _arguments(parser: argparse.ArgumentParser) -> tuple[_Argument, ...]:
    found = []
    for action in _actions(parser):
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:  # noqa: SLF001 - as above
            continue
        takes = action.nargs != 0
        label = str(action.metavar or action.dest) if takes else ""
        words = tuple(map(str, action.choices)) if action.choices is not None else ()
        kind = "words" if words else "files" if label in _FILES else "folders" if label in _FOLDERS else "text"
        text = (action.help or "").replace("%%", "%")
        arity = action.nargs if isinstance(action.nargs, str) else ""
        found.append(_Argument(tuple(action.option_strings), text, label, kind, words, arity))
    return tuple(found)


_BASH_KINDS = {"files": "compgen -f", "folders": "compgen -d"}


def _bash_values(argument: _Argument) -> str:
    """A command that prints the values that begin with $cur, or nothing."""
    if argument.words:
        return f"compgen -W {shlex.quote(' '.join(argument.words))}"
    return _BASH_KINDS.get(argument.kind, "")


def _bash_reply(values: str) -> str:
    return f'mapfile -t COMPREPLY < <({values} -- "$cur")' if values else ":"


def bash(parser: argparse.ArgumentParser) -> str:
    """What bash-completion reads from share/bash-completion/completions."""
    program, *commands = _commands(parser)
    names = " ".join(command.name for command in commands)
    lines = [
        f"# bash completion for {parser.prog}",
        f"_{parser.prog}() {{",
        '    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command="" word',
        "    COMPREPLY=()",
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        f"        case $word in {'|'.join(names.split())}) command=$word; break ;; esac",
        "    done",
        "    case $command,$prev in",
    ]
    for command in (program, *commands):
        for option in command.options:
            if option.label:
                patterns = "|".join(f"{command.name},{name}" for name in option.names)
                files = "compopt -o filenames 2>/dev/null; " if option.kind in _BASH_KINDS else ""
                lines.append(f"        {patterns}) {files}{_bash_reply(_bash_values(option))}; return ;;")
    lines += ["    esac", "    case $command,$cur in"]
    for command in (program, *commands):
        options = " ".join(name for option in command.options for name in option.names)
        lines.append(f"        {command.name},-*) {_bash_reply(f'compgen -W {shlex.quote(options)}')} ;;")
    lines.append(f"        ,*) {_bash_reply(f'compgen -W {shlex.quote(names)}')} ;;")
    for command in commands:
        values = [values for argument in command.others if (values := _bash_values(argument))]
        if values:
            files = "compopt -o filenames 2>/dev/null; " if any(each in _BASH_KINDS.values() for each in values) else ""
            lines.append(f"        {command.name},*) {files}{_bash_reply(values[0])} ;;")
    lines += ["    esac", "}", f"complete -F _{parser.prog} {parser.prog}"]
    return "\n".join(lines) + "\n"


_ZSH_KINDS = {"files": "_files", "folders": "_files -/"}


def _zsh_text(text: str) -> str:
    """A text inside a specification of _arguments, where some characters mean something (zshcompsys(1))."""
    for character in "\\:[]":
        text = text.replace(character, f"\\{character}")
    return text


def _zsh_values(argument: _Argument) -> str:
    return f"({' '.join(argument.words)})" if argument.words else _ZSH_KINDS.get(argument.kind, " ")


def _zsh_specs(command: _Command) -> Iterator[str]:
    for option in command.options:
        others = " ".join(option.names)
        for name in option.names:
            value = f":{_zsh_text(option.label)}:{_zsh_values(option)}" if option.label else ""
            equals = "=" if option.label and name.startswith("--") else ""
            yield shlex.quote(f"({others}){name}{equals}[{_zsh_text(option.help)}]{value}")
    for argument in command.others:
        place = {"?": ":", "*": "*", "+": "*"}.get(argument.arity, "")
        yield shlex.quote(f"{place}:{_zsh_text(argument.label)}:{_zsh_values(argument)}")


def zsh(parser: argparse.ArgumentParser) -> str:
    """What zsh reads from a directory of its fpath, as `_svcctl`."""
    program, *commands = _commands(parser)
    lines = [
        f"#compdef {parser.prog}",
        "local context state state_descr line",
        "typeset -A opt_args",
        "local -a commands=(",
        *(f"    {shlex.quote(f'{command.name}:{_zsh_text(command.help)}')}" for command in commands),
        ")",
        "_arguments -C \\",
        *(f"    {spec} \\" for spec in _zsh_specs(program)),
        "    ': :->command' '*:: :->arguments' && return 0",
        "case $state in",
        "    command) _describe -t commands command commands ;;",
        "    arguments)",
        "        case $words[1] in",
    ]
    for command in commands:
        specs = " ".join(_zsh_specs(command))
        lines.append(f"            {command.name}) _arguments {specs} ;;")
    lines += ["        esac ;;", "esac"]
    return "\n".join(lines) + "\n"

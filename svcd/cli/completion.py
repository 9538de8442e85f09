"""Shell completion for svcctl, made from its parser."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from svcd.cli.parser_model import commands_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from svcd.cli.parser_model import ParserArgument, ParserCommand

__all__ = ["bash", "zsh"]

_BASH_KINDS = {"files": "compgen -f", "folders": "compgen -d"}
#: The arguments of the program that lists the values of a kind.
_LISTS = {"services": "names", "options": "options --format names"}


#: A function that prints the lines of the program's output that begin with its last argument. compgen -W would expand
#: the names of services, and run commands in them.
_BASH_LIST = """\
_{program}_list() {{
    local line
    while IFS= read -r line; do
        [[ $line == "${{@: -1}}"* ]] && printf '%q\\n' "$line"
    done < <("${{self[@]}}" "${{@:1:$#-2}}" 2>/dev/null)
}}
"""


def _bash_values(argument: ParserArgument, program: str) -> str:
    """Return a command that prints the values that begin with $cur; empty if there are none."""
    if argument.words:
        return f"compgen -W {shlex.quote(' '.join(argument.words))}"
    if argument.kind in _LISTS:
        return f"_{program}_list {_LISTS[argument.kind]}"
    return _BASH_KINDS.get(argument.kind, "")


def _bash_reply(values: str) -> str:
    return f'mapfile -t COMPREPLY < <({values} -- "$cur")' if values else ":"


def bash(parser: argparse.ArgumentParser) -> str:
    """Return the file for share/bash-completion/completions."""
    program, *commands = commands_of(parser)
    names = " ".join(command.name for command in commands)
    lines = [
        f"# bash completion for {parser.prog}",
        *_BASH_LIST.format(program=parser.prog).splitlines(),
        f"_{parser.prog}() {{",
        '    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command="" word last=""',
        '    local -a self=("${COMP_WORDS[0]}")',
        "    COMPREPLY=()",
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        '        [[ $last == --control ]] && self+=(--control "$word")',
        "        last=$word",
        f"        case $word in {'|'.join(names.split())}) command=$word; break ;; esac",
        "    done",
        "    case $command,$prev in",
    ]
    for command in (program, *commands):
        for option in command.options:
            if option.label:
                patterns = "|".join(f"{command.name},{name}" for name in option.names)
                files = "compopt -o filenames 2>/dev/null; " if option.kind in _BASH_KINDS else ""
                lines.append(f"        {patterns}) {files}{_bash_reply(_bash_values(option, parser.prog))}; return ;;")
    lines += ["    esac", "    case $command,$cur in"]
    for command in (program, *commands):
        options = " ".join(name for option in command.options for name in option.names)
        lines.append(f"        {command.name},-*) {_bash_reply(f'compgen -W {shlex.quote(options)}')} ;;")
    lines.append(f"        ,*) {_bash_reply(f'compgen -W {shlex.quote(names)}')} ;;")
    for command in commands:
        values = [values for argument in command.others if (values := _bash_values(argument, parser.prog))]
        if values:
            files = "compopt -o filenames 2>/dev/null; " if any(each in _BASH_KINDS.values() for each in values) else ""
            lines.append(f"        {command.name},*) {files}{_bash_reply(values[0])} ;;")
    lines += ["    esac", "}", f"complete -F _{parser.prog} {parser.prog}"]
    return "\n".join(lines) + "\n"


_ZSH_KINDS = {
    "files": "_files",
    "folders": "_files -/",
    **{kind: f'{{compadd -- ${{(f)"$(svcctl {words} 2>/dev/null)"}}}}' for kind, words in _LISTS.items()},
}


def _zsh_text(text: str) -> str:
    """Escape text for a specification of _arguments (zshcompsys(1))."""
    for character in "\\:[]":
        text = text.replace(character, f"\\{character}")
    return text


def _zsh_values(argument: ParserArgument) -> str:
    return f"({' '.join(argument.words)})" if argument.words else _ZSH_KINDS.get(argument.kind, " ")


def _zsh_specs(command: ParserCommand) -> Iterator[str]:
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
    """Return the file `_svcctl` for a directory of zsh's fpath."""
    program, *commands = commands_of(parser)
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

"""Texts for users are plain technical English: replaced sentences do not come back, and no word stands for a person.

Texts for users are the option table, the catalog of built-ins, the help of svcctl and of `twistd svcd`, and all
messages: every string literal of svcd with a blank in it, other than docstrings.
"""

from __future__ import annotations

import argparse
import ast
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import svcd
from svcd.cli import _parser
from svcd.config.option_info import GROUPS
from svcd.config.options import TABLE
from svcd.daemon.options import Options
from svcd.protocols.catalog import BUILTINS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PACKAGE = Path(svcd.__file__).parent
_ROOT = _PACKAGE.parent

#: Sentences and parts of sentences that were replaced, most of them of the option help.
_REPLACED = """
Who may come in
without a value nobody
who has none is refused where one could decide
What runs is said by one of the options
or else is the first of the name and the aliases that is a built-in
what a client does not take has not moved
is the one that all else is about
A header of anybody else is data
How much more modest it is than the daemon
when processors are short
Who is refused gets no handshake
so it costs nothing, and no banner
nobody knows where the daemon is
who is refused gets no TLS
with commas between them
those of this machine alone
How many connections the kernel keeps waiting to be accepted
it fits itself to each connection
The same for what comes from a client
default: who runs the daemon
which else has its user's
Of all entries here and in no_access the most specific match decides
Who may not, as only_from
of two entries that are equally specific this one decides
When clients may come in
Whose clock access_times are read from
on nobody is let in
local for whoever connects to a UNIX socket
How many of them may come from one source
What a source is: all addresses
Whether those who come while there are too many
who comes too fast is refused
How many may come at once after a pause
what TLS needs to begin is nothing
How long a connection may last in all
How long a client may take for a whole request
How long the other server may take
a forged question then brings its victim no more than it cost
Two services that answer each other never end
What the program is told as its own name
Whether each connection has a process, forked from one
its name is looked up anew each time
User it runs as, by name or number
Permissions that files it makes do not get
How much address space it may have
with none as many as the daemon may at most
Let nothing it starts gain privileges
Where its standard error goes
ends when it has had none for so long
the service speaks TLS then
it stands in tls_cert
The oldest version of TLS that clients may speak
those that lead to a root
who offers others alone is refused
of those who may vouch for clients
Whom clients' certificates may be for
anybody of whom tls_client_ca vouches
So long before a certificate or a revocation list expires
File with a text for those who are let in
What is logged of those who are refused
""".strip().splitlines()

#: Words that stand for a person, or for a connection, process or caller as if it was one.
_PERSONS = re.compile(
    # A user account may have the name nobody.
    r"(?<![=\w])(?:nobody|somebody|anybody|everybody|someone|anyone|everyone|whoever|whomever|whom|who|told|tells?|hears?"
    r"|wants?|vouch(?:es)?|stranger|we|us|our|ours)(?![\w'])",
    re.IGNORECASE,
)


def _normalized(text: str) -> str:
    """Return a text in one line, without the escapes of roff."""
    return re.sub(r"\s+", " ", text.replace("\\-", "-"))


def _constants(node: ast.AST) -> Iterator[str]:
    """Yield the string literals of a module; the fields of an f-string are `{}`, docstrings are left out."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        if not (isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)):
            yield from _constants(child)


@cache
def _messages() -> dict[str, list[str]]:
    """Return the string literals with a blank, by module."""
    modules = sorted(_PACKAGE.rglob("*.py"))
    return {
        str(path.relative_to(_ROOT)): [
            text for text in map(_normalized, _constants(ast.parse(path.read_text("utf-8")))) if " " in text
        ]
        for path in modules
    }


def _option_texts() -> list[str]:
    """Return the texts of the option table and of the catalog of built-ins."""
    texts = list(GROUPS.values())
    for info in TABLE.values():
        texts += [info.help, info.value_type.accepts, info.scope_text(BUILTINS)]
    for builtin in BUILTINS.values():
        texts += [builtin.summary, builtin.note]
    return texts


def _parser_texts(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the texts of an argparse parser and of the parsers of its commands."""
    yield parser.description or ""
    yield parser.epilog or ""
    for action in parser._actions:
        yield action.help or ""
        if isinstance(action, argparse._SubParsersAction):
            yield from (choice.help or "" for choice in action._choices_actions)
            for command in action.choices.values():
                yield from _parser_texts(command)


def _help_texts() -> list[str]:
    """Return the help of svcctl and of `twistd svcd`."""
    texts = [text for text in _parser_texts(_parser()) if text]
    rows: list[Any] = Options.optParameters
    return [*texts, Options.longdesc, *(str(row[3]) for row in rows), *(str(row[2]) for row in Options.optFlags)]


@cache
def _documents() -> dict[str, str]:
    """Return the documents, and the files below docs/ and etc/, by path; none if tests/ is not in a checkout."""
    if not (_ROOT / "pyproject.toml").is_file():
        return {}
    paths = [_ROOT / "README.md"]
    paths += [path for folder in ("docs", "etc") for path in sorted((_ROOT / folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(_ROOT)): _normalized(path.read_text("utf-8", "replace")) for path in paths}


def test_sixty_sentences_were_replaced() -> None:
    """The list has 60 entries, each once."""
    assert len(_REPLACED) == len(set(_REPLACED)) == 60


@pytest.mark.parametrize("sentence", _REPLACED)
def test_a_replaced_sentence_does_not_come_back(sentence: str) -> None:
    """No message, help text or document contains a replaced sentence."""
    places = [path for path, texts in _messages().items() if any(sentence in text for text in texts)]
    places += [path for path, text in _documents().items() if sentence in text]
    assert places == []


def test_option_help_has_sentences_without_who_or_whose() -> None:
    """No sentence of the option help begins with Who or Whose; each help ends with a period."""
    for info in TABLE.values():
        assert info.help.endswith("."), info.name
        begins = [sentence.split()[0] for sentence in re.split(r"(?<=[.;:]) ", info.help)]
        assert not {"Who", "Whose", "Whom"} & set(begins), info.name


@pytest.mark.parametrize("texts", [_option_texts, _help_texts])
def test_option_and_command_help_name_no_persons(texts: Callable[[], list[str]]) -> None:
    """Help texts use the terms of the field for clients, processes and users."""
    found = texts()
    assert len(found) > 60
    assert [text for text in found if _PERSONS.search(text)] == []


def test_messages_name_no_persons() -> None:
    """Messages use the terms of the field for clients, processes and users."""
    found = _messages()
    assert "clients of a UNIX socket have no address; use local" in found["svcd/config/checks.py"]
    assert "{}: can't listen on {}: {}; {}" in found["svcd/errors.py"]
    assert [(path, text) for path, texts in found.items() for text in texts if _PERSONS.search(text)] == []


@pytest.mark.parametrize("text", ["who may not", "admits nobody", "the server is told", "Whoever: x", "what it wants"])
def test_words_for_persons_are_found(text: str) -> None:
    """The pattern finds these words in any place and case."""
    assert _PERSONS.search(text)


@pytest.mark.parametrize("text", ["user=nobody", "wholly", "who_is", "use", "TELLTALE", "twisted.web"])
def test_other_words_are_not_found(text: str) -> None:
    """The pattern finds no parts of words and no names of accounts."""
    assert _PERSONS.search(text) is None

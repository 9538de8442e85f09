"""Checks of the files in examples, each by the program that reads it where the machine has it."""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.real.example_shell import Shell

__all__ = ["check_file"]

_UNITS = (".service", ".socket", ".timer", ".path", ".target", ".mount")
_DOCKERFILE = ("FROM", "RUN", "COPY", "ADD", "USER", "WORKDIR", "EXPOSE", "ENTRYPOINT", "CMD", "ENV", "ARG", "LABEL",
               "VOLUME", "HEALTHCHECK", "STOPSIGNAL", "SHELL")  # fmt: skip


def _yaml(text: str) -> None:
    if None in list(yaml.safe_load_all(text)):
        raise ValueError("an empty document")


def _dockerfile(text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#") and line.split()[0] not in _DOCKERFILE:
            raise ValueError(f"no instruction: {line}")


def _ini(text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        if line and not line.startswith(("#", ";", "[")) and "=" not in line:
            raise ValueError(f"no assignment: {line}")


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": _yaml,
    "dockerfile": _dockerfile,
    "ini": _ini,
}


def _command(language: str, name: str, text: str) -> str | None:
    """Return the shell command that checks a file; its first word is the program."""
    match language:
        case "sh":
            return f"bash -n {name}"
        case "ini" if name.endswith(_UNITS):
            return f"systemd-analyze verify --man=no --recursive-errors=no {name}"
        case "haproxy":
            return f"haproxy -c -q -f {name}"
        case "yaml" if "scrape_configs" in text:
            return f"promtool check config {name}"
        case "yaml" if "groups:" in text:
            return f"promtool check rules {name}"
        case "nginx" if re.search(r"^(?:events|load_module)\b", text, re.MULTILINE):
            return f"nginx -t -q -c $PWD/{name} -g 'pid /dev/null; error_log stderr;'"
        case "nginx":
            return f"nginx -t -q -c $PWD/{name}.main"
    return None


def _nginx_main(shell: Shell, name: str, text: str) -> None:
    """Write a main file that includes an example."""
    _, folder = shell.run("pwd")
    inner = f"include {folder.strip()}/{name};"
    if "http {" not in text and "stream {" not in text:
        inner = f"http {{ {inner} }}"
    module = "load_module modules/ngx_stream_module.so;" if "stream {" in text else ""
    shell.put(f"{name}.main", f"{module}\npid /dev/null;\nerror_log stderr;\nevents {{}}\n{inner}\n")


def check_file(shell: Shell, language: str, name: str, text: str) -> str | None:
    """Check a file of an example that the shell has.

    Returns:
        what is wrong with it, None if nothing is.
    """
    try:
        _PARSERS.get(language, str)(text)
    except (ValueError, yaml.YAMLError) as error:
        return str(error)
    command = _command(language, name, text)
    if command is None or shell.run(f"command -v {command.split()[0]}")[0]:
        return None
    if f"{name}.main" in command:
        _nginx_main(shell, name, text)
    status, output = shell.run(command)
    return f"{command}: {output}" if status else None

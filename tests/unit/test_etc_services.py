"""The machine's /etc/services as a services file."""

from __future__ import annotations

from pathlib import Path

import pytest

from svcd.config.parser import parse
from svcd.host.files import LocalFiles
from svcd.model import NetProtocol
from svcd.protocols.catalog import BUILTINS

FILE = Path("/etc/services")


def test_the_machines_services_parse() -> None:
    """Each line that names a built-in is a service; each other line is one problem."""
    if not FILE.is_file():
        pytest.skip("this machine has no /etc/services")
    served: list[int] = []
    unserved: list[int] = []
    for number, raw in enumerate(FILE.read_text("utf-8").splitlines(), 1):
        words = raw.partition("#")[0].split()
        if not words:
            continue
        name, where, *aliases = words
        net = where.partition("/")[2]
        runs = next((each for each in (name, *aliases) if each in BUILTINS), None)
        good = net in list(NetProtocol) and runs is not None and NetProtocol(net).shape in BUILTINS[runs].shapes
        (served if good else unserved).append(number)
    config, problems = parse(str(FILE), LocalFiles(), BUILTINS)
    assert [service.location.line for service in config.services] == served
    assert [problem.location.line for problem in problems] == unserved
    assert unserved or not served

"""Factories of factory=, and their use for services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock

from svcd.config.options import ServiceOptions
from svcd.errors import ConfigError
from svcd.protocols.catalog import stream_factory
from svcd.protocols.echo import EchoFactory
from svcd.protocols.redirect import RedirectFactory
from tests.doubles import dependencies, service_of

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """\
from twisted.internet.protocol import Factory, Protocol

class Mine(Factory):
    protocol = Protocol

class Asking(Factory):
    def __init__(self, options):
        self.options = options

class Optional(Factory):
    def __init__(self, greeting=b"hello"):
        self.greeting = greeting

ready = Mine()
def without(): return Mine()
def asked(options): return Asking(options)
def raises(): return 1 / 0
def wrong(options): return 5
def exits(): raise ValueError("no\\nway")
class Namespace:
    inner = Mine
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with factories."""
    (tmp_path / "user_factories.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def _made(name: str) -> Any:
    service = service_of(f"x 7/tcp factory=user_factories:{name} nodelay=no")
    return stream_factory(service, dependencies(Clock()))


def test_factory_instance() -> None:
    """A Factory instance is used as it is, the same one for all services that name it."""
    assert _made("ready") is _made("ready")


@pytest.mark.parametrize("name", ["Mine", "without", "Optional", "Namespace.inner"])
def test_factory_callable(name: str) -> None:
    """A class or function is called once for each service, without optional arguments."""
    made = _made(name)
    assert isinstance(made, Factory)
    assert made is not _made(name)
    assert getattr(made, "greeting", b"hello") == b"hello"


@pytest.mark.parametrize("name", ["Asking", "asked"])
def test_factory_callable_with_an_argument(name: str) -> None:
    """A callable with a required argument gets the options of the service."""
    options = _made(name).options
    assert isinstance(options, ServiceOptions)
    assert options.nodelay is False


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("raises", "user_factories:raises raises ZeroDivisionError: division by zero (/"),
        ("exits", "user_factories:exits raises ValueError: no way (/"),
        ("wrong", "user_factories:wrong returns int, not a Factory (IProtocolFactory)"),
        ("Namespace", "user_factories:Namespace returns Namespace, not a Factory (IProtocolFactory)"),
        ("missing", "can't serve user_factories:missing: module 'user_factories' has no attribute 'missing'"),
    ],
)
def test_reference_without_a_factory(name: str, text: str) -> None:
    """A reference that does not lead to a Factory is a problem, in one line, at its position in the services file."""
    with pytest.raises(ConfigError) as caught:
        _made(name)
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"s:1:17: factory: {text}")
    assert "\n" not in str(problem)


def test_stream_factory_of_other_services() -> None:
    """stream_factory() also returns the factories of built-ins and redirections."""
    deps = dependencies(Clock())
    assert isinstance(stream_factory(service_of("x 7/tcp echo"), deps), EchoFactory)
    made = stream_factory(service_of("echo 7/tcp redirect=[::1]:9 connect_timeout=3s"), deps)
    assert isinstance(made, RedirectFactory)
    assert (made.name, made.timeout) == ("[::1]:9", 3.0)

"""The environment of a handler."""

from __future__ import annotations

import pwd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.process.environment import (
    PATH,
    local_proxy_environment,
    proxy_environment,
    service_environment,
    tcp_environment,
    unix_environment,
)
from svcd.process.programs import connection_variables

GIT = pwd.struct_passwd(("git", "x", 1000, 1000, "", "/srv/git", "/bin/false"))
DAEMON = {"TZ": "UTC", "LD_PRELOAD": "/tmp/evil.so", "PATH": "/nowhere", "HOME": "/root", "EMPTY": ""}


def _variables(data: bytes) -> dict[str, str]:
    return dict(each.split("=", 1) for each in data.decode().split("\0"))


def test_nothing_of_the_daemons_environment_is_inherited() -> None:
    """A service without options has a path and its name."""
    assert service_environment("cat", None, (), (), DAEMON) == {"PATH": PATH, "SVCD_SERVICE": "cat"}


def test_a_user_has_a_home() -> None:
    """With user= the variables of a login are that user's, and one without a shell has the standard one."""
    values = service_environment("git", GIT, (), (), DAEMON)
    assert values == {
        "PATH": PATH, "SVCD_SERVICE": "git", "HOME": "/srv/git", "USER": "git", "LOGNAME": "git", "SHELL": "/bin/false",
    }  # fmt: skip
    bare = pwd.struct_passwd(("x", "x", 1, 1, "", "/", ""))
    assert service_environment("x", bare, (), (), {})["SHELL"] == "/bin/sh"


def test_what_is_passed_and_what_is_set() -> None:
    """Passenv passes what there is; env has the last word."""
    env = (("TZ", "CET"), ("A", "1"), ("A", "2"), ("HOME", "/h"))
    values = service_environment("x", GIT, env, ("TZ", "EMPTY", "PATH", "UNKNOWN"), DAEMON)
    assert (values["TZ"], values["A"], values["HOME"], values["EMPTY"]) == ("CET", "2", "/h", "")
    assert values["PATH"] == "/nowhere"
    assert "UNKNOWN" not in values


def test_a_tcp_connection() -> None:
    """Both ends, how many there are, and the words of xinetd and systemd for the client."""
    assert _variables(tcp_environment("192.0.2.7", 7, "192.0.2.1", 40_000, 3)) == {
        "PROTO": "TCP",
        "TCPLOCALIP": "192.0.2.7",
        "TCPLOCALPORT": "7",
        "TCPREMOTEIP": "192.0.2.1",
        "TCPREMOTEPORT": "40000",
        "TCPCONNNUM": "3",
        "REMOTE_HOST": "192.0.2.1",
        "REMOTE_ADDR": "192.0.2.1",
        "REMOTE_PORT": "40000",
    }


@pytest.mark.parametrize(
    ("host", "told"),
    [("::ffff:192.0.2.1", "192.0.2.1"), ("::ffff:c000:201", "192.0.2.1"), ("2001:db8::1", "2001:db8::1")],
)
def test_a_mapped_client_is_told_as_ipv4(host: str, told: str) -> None:
    """Programs that know IPv4 alone see it, as the log does."""
    values = _variables(tcp_environment(host, 7, host, 1, 1))
    assert {values[name] for name in ("TCPLOCALIP", "TCPREMOTEIP", "REMOTE_HOST", "REMOTE_ADDR")} == {told}


@pytest.mark.parametrize("name", ["host.example", "a", "x_1-2.example", "1.2.0.192.in-addr.arpa", "a" * 253])
def test_a_host_name_is_told(name: str) -> None:
    """The client's host name is TCPREMOTEHOST, that of the server's address TCPLOCALHOST."""
    assert _variables(tcp_environment("::1", 7, "::1", 1, 1, name))["TCPREMOTEHOST"] == name
    values = _variables(tcp_environment("::1", 7, "::1", 1, 1, None, name))
    assert (values["TCPLOCALHOST"], "TCPREMOTEHOST" in values) == (name, False)


@pytest.mark.parametrize(
    "name", [None, "", "$(reboot)", "a b", "a\0LD_PRELOAD=x", "-rf", ".a", "a.", "a\n", "é", "a;b", "a" * 254]
)
def test_a_name_that_is_no_host_name_is_not(name: str | None) -> None:
    """The operator of the client's name server can't reach a shell by it."""
    values = _variables(tcp_environment("::1", 7, "::1", 1, 1, name, name))
    assert not {"TCPREMOTEHOST", "TCPLOCALHOST"} & values.keys()


@given(st.text())
def test_no_name_adds_a_variable(name: str) -> None:
    """Whatever a name server answers, there is TCPREMOTEHOST or nothing."""
    plain = _variables(tcp_environment("192.0.2.7", 7, "192.0.2.1", 1, 1))
    named = _variables(tcp_environment("192.0.2.7", 7, "192.0.2.1", 1, 1, name))
    assert named.keys() - {"TCPREMOTEHOST"} == plain.keys()


def test_a_proxy() -> None:
    """The proxy's address, as IPv4 if it is IPv4-mapped, or its process."""
    assert _variables(proxy_environment("::ffff:192.0.2.9", 5)) == {"PROXY_ADDR": "192.0.2.9", "PROXY_PORT": "5"}
    assert _variables(local_proxy_environment(17, 1000, 100)) == {
        "UNIXREMOTEPID": "17", "UNIXREMOTEUID": "1000", "UNIXREMOTEGID": "100",
    }  # fmt: skip
    kept = connection_variables(tcp_environment("::1", 7, "::1", 1, 1) + b"\0" + proxy_environment("192.0.2.9", 5))
    assert kept[b"PROXY_ADDR"] == b"192.0.2.9"


def test_a_local_connection() -> None:
    """A UNIX socket's client is known by its process."""
    assert _variables(unix_environment(17, 1000, 100)) == {
        "PROTO": "UNIX", "UNIXREMOTEPID": "17", "UNIXREMOTEUID": "1000", "UNIXREMOTEGID": "100",
    }  # fmt: skip

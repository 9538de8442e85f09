"""Environment variables of a handler."""

from __future__ import annotations

import pwd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.process.environment import (
    PATH,
    VARIABLES,
    local_proxy_environment,
    proxy_environment,
    service_environment,
    tcp_environment,
    unix_environment,
)
from svcd.process.programs import connection_variables
from svcd.tls.peer import PeerIdentity
from svcd.wire.certificates import ClientName, NameKind

GIT = pwd.struct_passwd(("git", "x", 1000, 1000, "", "/srv/git", "/bin/false"))
DAEMON = {"TZ": "UTC", "LD_PRELOAD": "/tmp/evil.so", "PATH": "/nowhere", "HOME": "/root", "EMPTY": ""}


def _variables(data: bytes) -> dict[str, str]:
    return dict(each.split("=", 1) for each in data.decode().split("\0"))


def test_nothing_of_the_daemons_environment_is_inherited() -> None:
    """A service without options has PATH and SVCD_SERVICE only."""
    assert service_environment("cat", None, (), (), DAEMON) == {"PATH": PATH, "SVCD_SERVICE": "cat"}


def test_a_user_has_a_home() -> None:
    """With user= the login variables are that user's; SHELL is /bin/sh if passwd(5) has none."""
    values = service_environment("git", GIT, (), (), DAEMON)
    assert values == {
        "PATH": PATH, "SVCD_SERVICE": "git", "HOME": "/srv/git", "USER": "git", "LOGNAME": "git", "SHELL": "/bin/false",
    }  # fmt: skip
    bare = pwd.struct_passwd(("x", "x", 1, 1, "", "/", ""))
    assert service_environment("x", bare, (), (), {})["SHELL"] == "/bin/sh"


def test_passenv_and_env() -> None:
    """passenv= passes variables that exist; env= overrides everything."""
    env = (("TZ", "CET"), ("A", "1"), ("A", "2"), ("HOME", "/h"))
    values = service_environment("x", GIT, env, ("TZ", "EMPTY", "PATH", "UNKNOWN"), DAEMON)
    assert (values["TZ"], values["A"], values["HOME"], values["EMPTY"]) == ("CET", "2", "/h", "")
    assert values["PATH"] == "/nowhere"
    assert "UNKNOWN" not in values


def test_a_tcp_connection() -> None:
    """A TCP connection has both addresses, the number of connections, and the client as in xinetd and systemd."""
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
    ("host", "text"),
    [("::ffff:192.0.2.1", "192.0.2.1"), ("::ffff:c000:201", "192.0.2.1"), ("2001:db8::1", "2001:db8::1")],
)
def test_an_ipv4_mapped_address_is_written_as_ipv4(host: str, text: str) -> None:
    """An IPv4-mapped address is written as IPv4, as in the log."""
    values = _variables(tcp_environment(host, 7, host, 1, 1))
    assert {values[name] for name in ("TCPLOCALIP", "TCPREMOTEIP", "REMOTE_HOST", "REMOTE_ADDR")} == {text}


@pytest.mark.parametrize("name", ["host.example", "a", "x_1-2.example", "1.2.0.192.in-addr.arpa", "a" * 253])
def test_host_names_are_passed(name: str) -> None:
    """TCPREMOTEHOST is the host name of the client, TCPLOCALHOST that of the server's address."""
    assert _variables(tcp_environment("::1", 7, "::1", 1, 1, name))["TCPREMOTEHOST"] == name
    values = _variables(tcp_environment("::1", 7, "::1", 1, 1, None, name))
    assert (values["TCPLOCALHOST"], "TCPREMOTEHOST" in values) == (name, False)


@pytest.mark.parametrize(
    "name", [None, "", "$(reboot)", "a b", "a\0LD_PRELOAD=x", "-rf", ".a", "a.", "a\n", "é", "a;b", "a" * 254]
)
def test_invalid_host_names_are_not_passed(name: str | None) -> None:
    """A name with characters that a host name can't have is not passed on: it could reach a shell."""
    values = _variables(tcp_environment("::1", 7, "::1", 1, 1, name, name))
    assert not {"TCPREMOTEHOST", "TCPLOCALHOST"} & values.keys()


@given(st.text())
def test_arbitrary_host_names(name: str) -> None:
    """Any name from a name server adds TCPREMOTEHOST or no variable at all."""
    plain = _variables(tcp_environment("192.0.2.7", 7, "192.0.2.1", 1, 1))
    named = _variables(tcp_environment("192.0.2.7", 7, "192.0.2.1", 1, 1, name))
    assert named.keys() - {"TCPREMOTEHOST"} == plain.keys()


def test_a_proxy() -> None:
    """PROXY_ADDR is the proxy's address, as IPv4 if it is IPv4-mapped; a local proxy has its credentials."""
    assert _variables(proxy_environment("::ffff:192.0.2.9", 5)) == {"PROXY_ADDR": "192.0.2.9", "PROXY_PORT": "5"}
    assert _variables(local_proxy_environment(17, 1000, 100)) == {
        "UNIXREMOTEPID": "17", "UNIXREMOTEUID": "1000", "UNIXREMOTEGID": "100",
    }  # fmt: skip
    kept = connection_variables(tcp_environment("::1", 7, "::1", 1, 1) + b"\0" + proxy_environment("192.0.2.9", 5))
    assert kept[b"PROXY_ADDR"] == b"192.0.2.9"


def test_a_local_connection() -> None:
    """The client of a UNIX socket has its pid, uid and gid."""
    assert _variables(unix_environment(17, 1000, 100)) == {
        "PROTO": "UNIX", "UNIXREMOTEPID": "17", "UNIXREMOTEUID": "1000", "UNIXREMOTEGID": "100",
    }  # fmt: skip


def test_each_variable_is_described() -> None:
    """Neither one more nor one less than a handler may get."""
    identity = PeerIdentity("TLSv1.3", "x", "x", "", "SUCCESS", "x", "x", (ClientName(NameKind.DNS, "x"),))
    names = [
        *service_environment("x", GIT, (), (), DAEMON),
        *_variables(tcp_environment("::1", 7, "::1", 1, 1, "a", "b")),
        *_variables(unix_environment(17, 1000, 100)),
        *_variables(proxy_environment("192.0.2.9", 5)),
        *identity.environment(),
    ]
    assert set(VARIABLES) == set(names)

"""Environment variables of an HTTP request (RFC 3875, section 4.1)."""

from __future__ import annotations

import pytest

from svcd.process.cgi_programs import request_variables
from svcd.process.request_environment import REQUEST_VARIABLES, RequestConnection, request_environment
from svcd.wire.http_request import HttpRequest

INET = RequestConnection(("192.0.2.7", 8080), ("192.0.2.1", 40_000))


def _request(method: str = "GET", target: bytes = b"/cgi-bin/a", **fields: bytes) -> HttpRequest:
    named = {name.replace("_", "-").encode(): value for name, value in fields.items()}
    return HttpRequest(method, target, {b"host": b"www.example:8080", **named}, "1.1", True)


def _field_request(name: str, value: bytes) -> HttpRequest:
    request = _request()
    request.fields[name.replace("_", "-").encode()] = value
    return request


def _variables(request: HttpRequest, connection: RequestConnection = INET, host: str = "") -> dict[str, str]:
    values = request_environment(request, connection, host)
    # The launcher takes all of them.
    assert len(request_variables(b"\0".join(values))) == len(values)
    return dict(each.decode("latin-1").split("=", 1) for each in values)


def test_the_variables_of_a_request() -> None:
    """A request has the variables of the RFC, and those that other servers add."""
    assert _variables(_request(target=b"/cgi-bin/a%20b/c?d=%20&e=f")) == {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "HTTP_HOST": "www.example:8080",
        "QUERY_STRING": "d=%20&e=f",
        "REDIRECT_STATUS": "200",
        "REMOTE_ADDR": "192.0.2.1",
        "REMOTE_HOST": "192.0.2.1",
        "REMOTE_PORT": "40000",
        "REQUEST_METHOD": "GET",
        "REQUEST_SCHEME": "http",
        "REQUEST_URI": "/cgi-bin/a%20b/c?d=%20&e=f",
        "SERVER_ADDR": "192.0.2.7",
        "SERVER_NAME": "www.example",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "svcd",
    }


def test_a_query_may_be_empty() -> None:
    """QUERY_STRING is always set (section 4.1.7)."""
    assert _variables(_request())["QUERY_STRING"] == ""
    assert _variables(_request(target=b"/cgi-bin/a?"))["QUERY_STRING"] == ""
    assert _variables(_request(target=b"/cgi-bin/a?b?c"))["QUERY_STRING"] == "b?c"


def test_a_body_has_a_length_and_a_type() -> None:
    """Length and type of a body have variables of their own, and no HTTP_ variables."""
    values = _variables(_request("POST", content_length=b"12", content_type=b"text/plain; charset=utf-8"))
    assert (values["CONTENT_LENGTH"], values["CONTENT_TYPE"]) == ("12", "text/plain; charset=utf-8")
    assert not [name for name in values if name.startswith("HTTP_CONTENT")]
    assert "CONTENT_LENGTH" not in _variables(_request("POST", transfer_encoding=b"chunked"))


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("user_agent", "HTTP_USER_AGENT"),
        ("x_a", "HTTP_X_A"),
        ("cookie", "HTTP_COOKIE"),
        ("proxy_x", "HTTP_PROXY_X"),
        ("authorization", None),
        ("proxy_authorization", None),
        ("proxy", None),
        ("connection", None),
        ("transfer_encoding", None),
        ("te", None),
        ("upgrade", None),
    ],
)
def test_fields_are_variables(name: str, variable: str | None) -> None:
    """Each field is a variable, except credentials, those of the connection, and Proxy (httpoxy)."""
    plain, values = set(_variables(_request())), _variables(_field_request(name, b"v\xe9"))
    assert set(values) - plain == ({variable} if variable else set())
    assert variable is None or values[variable] == "v\xe9"


def test_names_that_could_stand_for_another_field_are_left_out() -> None:
    """A name with an underscore would be the same variable as a name with a hyphen."""
    request = _request()
    for name in (b"x_forwarded", b"x.a", b"content_length", b"x'a"):
        request.fields[name] = b"forged"
    assert "forged" not in _variables(request).values()


def test_tls_variables() -> None:
    """Over TLS there are HTTPS and the variables of the handshake."""
    connection = RequestConnection(("::ffff:192.0.2.7", 443), ("2001:db8::1", 4), {"SSL_PROTOCOL": "TLSv1.3"})
    values = _variables(_request(), connection)
    assert (values["HTTPS"], values["REQUEST_SCHEME"], values["SSL_PROTOCOL"]) == ("on", "https", "TLSv1.3")
    assert (values["SERVER_ADDR"], values["REMOTE_ADDR"], values["REMOTE_HOST"]) == (
        "192.0.2.7", "2001:db8::1", "2001:db8::1",
    )  # fmt: skip
    assert "HTTPS" not in _variables(_request())


def test_the_host_name_of_the_client() -> None:
    """REMOTE_HOST is the host name if it was looked up."""
    assert _variables(_request(), host="a.example")["REMOTE_HOST"] == "a.example"


def test_a_unix_socket() -> None:
    """At a UNIX socket there are no addresses; the variables that the RFC requires are set."""
    values = _variables(HttpRequest("GET", b"/", {}, "1.0", False), RequestConnection(None, None))
    assert (values["SERVER_NAME"], values["SERVER_PORT"], values["REMOTE_ADDR"]) == ("localhost", "80", "")
    assert "SERVER_ADDR" not in values
    assert values["SERVER_PROTOCOL"] == "HTTP/1.0"


@pytest.mark.parametrize(
    ("host", "target", "name"),
    [
        (b"a.example", b"/", "a.example"),
        (b"a.example:81", b"/", "a.example"),
        (b"[2001:db8::1]", b"/", "[2001:db8::1]"),
        (b"[2001:db8::1]:81", b"/", "[2001:db8::1]"),
        (b"", b"/", "192.0.2.7"),
        (b"a.example", b"http://b.example:82/x", "b.example"),
    ],
)
def test_the_name_of_the_server(host: bytes, target: bytes, name: str) -> None:
    """SERVER_NAME is the host that the client requested, without a port (section 4.1.14)."""
    assert _variables(_request(target=target, host=host))["SERVER_NAME"] == name


def test_the_address_of_the_server_as_its_name() -> None:
    """An address of IPv6 is in brackets."""
    connection = RequestConnection(("2001:db8::7", 80), ("2001:db8::1", 4))
    assert _variables(HttpRequest("GET", b"/", {}, "1.0", False), connection)["SERVER_NAME"] == "[2001:db8::7]"


def test_all_variables_are_documented() -> None:
    """The reference has each variable, and no other."""
    values = _variables(
        _request("POST", content_length=b"1", content_type=b"a/b"),
        RequestConnection(("192.0.2.7", 443), ("192.0.2.1", 4), {"SSL_PROTOCOL": "TLSv1.3"}),
    )
    known = {name for name in values if not name.startswith(("HTTP_", "SSL_"))}
    by_launcher = {"DOCUMENT_ROOT", "HTTP_*", "PATH_INFO", "PATH_TRANSLATED", "SCRIPT_FILENAME", "SCRIPT_NAME"}
    assert known | by_launcher == set(REQUEST_VARIABLES)

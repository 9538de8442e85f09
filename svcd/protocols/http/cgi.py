"""CGI programs of an HTTP service (RFC 3875): a Handler that starts a program for each request below a path.

Programs run with the rights of the service's launcher, which finds them (svcd.process.cgi_programs). At most
`instances` of them run at the same time; further requests wait.

Words of a query without `=` are no arguments of the program, which section 4.4 proposes: they have let clients pass
options to interpreters (CVE-2012-1823).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred

from svcd.process.messages import MAX_ENVIRONMENT
from svcd.process.request_environment import RequestConnection, request_environment
from svcd.protocols.http.cgi_script import CgiScript
from svcd.protocols.http.response import Response, error_response, respond_with
from svcd.wire.http_request import HttpError, path_segments

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IDelayedCall
    from twisted.python.failure import Failure

    from svcd.interfaces import HostNameResolver, StreamTransport
    from svcd.protocols.http.cgi_script import ScriptLauncher, ScriptResult
    from svcd.protocols.http.response import Handler, Reply
    from svcd.wire.http_request import HttpRequest

__all__ = ["CgiHandler", "CgiSettings"]

#: The number of local redirects that are followed for one request.
_MOST_REDIRECTS = 10
#: The number of request targets that are kept with their paths.
_KNOWN_TARGETS = 256
#: The time after which the output of a program is watched, in seconds. Most programs end before, and need no watch.
_WATCH_SECONDS = 0.002
#: The interval of the checks of time limits, in seconds.
_CHECK_SECONDS = 0.5
#: The time after which a client may try again, in seconds, for Retry-After.
_RETRY_SECONDS = 1
#: Fields about the body of a request; a local redirect has none (RFC 3875, section 6.2.2).
_BODY_FIELDS = frozenset({b"content-length", b"content-type", b"content-encoding", b"transfer-encoding", b"expect"})


@dataclass(frozen=True, slots=True)
class CgiSettings:
    """The options of the CGI programs of a service.

    Attributes:
        path: the path of the programs' directory in URLs, with a slash at its end.
        timeout: the time limit of output, and of the wait for other programs, in seconds.
        instances: the maximum number of programs that run at the same time; None for no limit.
        root: the directory of root=; empty without one.
        resolver: looks up host names for REMOTE_HOST; None to set it to the address.
    """

    path: str
    timeout: float
    instances: int | None
    root: str = ""
    resolver: HostNameResolver | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    """A request for a program.

    Attributes:
        request: the request.
        peer: the address of the client.
        transport: the connection.
        path: the path of the request below the programs' directory, decoded.
        remote_host: the host name of the client, if it was looked up.
        redirects: the number of local redirects that led to it.
    """

    request: HttpRequest
    peer: IAddress
    transport: StreamTransport
    path: str
    remote_host: str = ""
    redirects: int = 0


class CgiHandler:
    """A Handler that runs CGI programs below a path, and passes other requests on.

    Args:
        settings: the options of the service.
        others: responds to the requests outside the path.
        launcher: starts programs.
    """

    streams: Literal[True] = True
    methods = None

    def __init__(self, settings: CgiSettings, others: Handler, launcher: ScriptLauncher) -> None:
        self._settings = settings
        root = settings.root.encode(errors="surrogateescape")
        self._root_variable = [b"DOCUMENT_ROOT=" + root] if root else []
        self._prefix = [each for each in settings.path.split("/") if each]
        self._path_of = lru_cache(_KNOWN_TARGETS)(self._path)
        self._others = others
        self._launcher = launcher
        self._running: dict[CgiScript, None] = {}
        # Requests that wait for the end of a program, each with the time at which it began to wait.
        self._waiting: dict[Deferred[bool], float] = {}
        self._is_starting = False
        # Programs that have started, and whose output is not watched yet.
        self._unwatched: list[CgiScript] = []
        self._check_call: IDelayedCall | None = None

    def respond(self, request: HttpRequest, peer: IAddress, transport: StreamTransport) -> Reply:
        """Return the response of a program, or of the handler of other paths.

        Raises:
            HttpError: 400 for a bad path; as the handler of other paths.
        """
        return self._respond(request, peer, transport, 0)

    def _respond(self, request: HttpRequest, peer: IAddress, transport: StreamTransport, redirects: int) -> Reply:
        path = self._path_of(request.target)
        if not path:
            return respond_with(self._others, request, peer, transport)
        call = _Call(request, peer, transport, path, redirects=redirects)
        resolver = self._settings.resolver
        place = _place(peer)
        if resolver is None or place is None:
            return self._run(call)
        return resolver.host_of(place[0]).addCallback(lambda host: self._run(replace(call, remote_host=host or "")))

    def _path(self, target: bytes) -> str:
        """Return the path of a target below the programs' directory, decoded; empty for another path.

        Raises:
            HttpError: 400 for a bad path.
        """
        segments = path_segments(target)
        count = len(self._prefix)
        return "/" + "/".join(segments[count:]) if segments[:count] == self._prefix and segments[count:] else ""

    def _run(self, call: _Call) -> Reply:
        """Start the program of a request, or let the request wait."""
        if self._has_room:
            return self._start(call)
        waiting: Deferred[bool] = Deferred(self._forget)
        self._waiting[waiting] = self._launcher.reactor.seconds()
        self._check_later()
        return waiting.addCallback(lambda may_run: self._start(call) if may_run else _unavailable())

    def _start(self, call: _Call) -> Reply:
        environment = b"\0".join([
            *request_environment(call.request, _connection_of(call.transport), call.remote_host),
            b"SCRIPT_NAME=" + "".join(f"/{each}" for each in self._prefix).encode(),
            b"PATH_INFO=" + call.path.encode(),
            *self._root_variable,
        ])  # fmt: skip
        if len(environment) > MAX_ENVIRONMENT:
            raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        script = CgiScript(
            call.request, self._launcher, lambda reason: self._failed(call, reason), self._over, self._watch_soon
        )
        self._running[script] = None
        self._check_later()
        try:
            script.start(environment)
        except OSError as error:
            script.start_failed(error.errno or 0)
        response: Deferred[Any] = script.response
        response.addCallbacks(lambda result: self._follow(call, result), _with_retry_time)
        return response

    def _follow(self, call: _Call, result: ScriptResult) -> Reply:
        """Return a response, or the response to a local redirect (RFC 3875, section 6.2.2)."""
        if isinstance(result, Response):
            return result
        if call.redirects == _MOST_REDIRECTS:
            self._failed(call, f"more than {_MOST_REDIRECTS} local redirects")
            raise HttpError(HTTPStatus.INTERNAL_SERVER_ERROR)
        fields = {name: value for name, value in call.request.fields.items() if name not in _BODY_FIELDS}
        method = "HEAD" if call.request.method == "HEAD" else "GET"
        request = replace(call.request, method=method, target=result.local_target, fields=fields, body=None)
        return self._respond(request, call.peer, call.transport, call.redirects + 1)

    def _failed(self, call: _Call, reason: str) -> None:
        self._launcher.failed(call.peer, f"{self._settings.path}{call.path[1:]}: {reason}")

    def _forget(self, waiting: Deferred[bool]) -> None:
        del self._waiting[waiting]

    def _over(self, script: CgiScript) -> None:
        """Handle the end of a program: start those that wait, as long as there is room."""
        del self._running[script]
        if self._is_starting:
            # A program that waited could not be started: the loop goes on, without recursion.
            return
        self._is_starting = True
        try:
            while self._waiting and self._has_room:
                waiting = next(iter(self._waiting))
                del self._waiting[waiting]
                waiting.callback(True)
        finally:
            self._is_starting = False

    @property
    def _has_room(self) -> bool:
        return self._settings.instances is None or len(self._running) < self._settings.instances

    def _watch_soon(self, script: CgiScript) -> None:
        if not self._unwatched:
            self._launcher.reactor.callLater(_WATCH_SECONDS, self._watch)
        self._unwatched.append(script)

    def _watch(self) -> None:
        scripts, self._unwatched = self._unwatched, []
        for script in scripts:
            script.watch_head()

    def _check_later(self) -> None:
        if self._check_call is None:
            self._check_call = self._launcher.reactor.callLater(_CHECK_SECONDS, self._check)

    def _check(self) -> None:
        """Apply the time limits."""
        self._check_call = None
        now, limit = self._launcher.reactor.seconds(), self._settings.timeout
        for script in list(self._running):
            script.check(now, limit)
        for waiting, since in list(self._waiting.items()):
            if now - since < limit:
                break
            del self._waiting[waiting]
            waiting.callback(False)
        if self._running or self._waiting:
            self._check_later()


def _unavailable() -> Response:
    """Return the response to a request for which there is no room; the client may try again soon."""
    response = error_response(HTTPStatus.SERVICE_UNAVAILABLE)
    return replace(response, fields={**response.fields, "Retry-After": str(_RETRY_SECONDS)})


def _with_retry_time(failure: Failure) -> Response | Failure:
    """Return the response to a request whose program could not be started for lack of resources."""
    error = failure.value
    busy = isinstance(error, HttpError) and error.status is HTTPStatus.SERVICE_UNAVAILABLE
    return _unavailable() if busy else failure


def _connection_of(transport: Any) -> RequestConnection:  # noqa: ANN401 - the transport of any reactor
    """Return the connection of a request, for its variables."""
    identity = getattr(transport, "tls_identity", None)
    tls = None if identity is None else identity.environment()
    return RequestConnection(_place(transport.getHost()), _place(transport.getPeer()), tls)


def _place(address: Any) -> tuple[str, int] | None:  # noqa: ANN401 - an IAddress
    """Return an address of the Internet; None for a UNIX socket."""
    return (address.host, address.port) if isinstance(address, IPv4Address | IPv6Address) else None

"""The options of WebSocket, and the types of their values."""

from __future__ import annotations

import re
from dataclasses import dataclass

from svcd.config.option_info import option
from svcd.config.process_options import BUFFER_SIZE
from svcd.config.value_types import TIMEOUT, YES_NO, ValueType, choice, or_none, require

__all__ = ["ORIGINS", "SUBPROTOCOLS", "WEBSOCKET_MODES", "WEB_PATH", "WebSocketOptions"]

#: The words of websocket=.
WEBSOCKET_MODES = ("lines", "text", "binary")

#: An origin as browsers send it (RFC 6454, section 6.2): no path, and no port that is the default.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
#: A token (RFC 9110, section 5.6.2).
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_WEB_PATH = re.compile(r"(?:/[^\s/?#%\\]+)+/?|/")


def _read_path(word: str) -> str:
    require(_WEB_PATH.fullmatch(word) and word.isprintable() and not {".", ".."} & set(word.split("/")))
    return word


WEB_PATH: ValueType[str] = ValueType(
    "web path", "the path of a URL, decoded, without a query, such as /chat", _read_path, str
)


def _read_origins(word: str) -> tuple[str, ...]:
    origins = tuple(word.lower().split(","))
    for origin in origins:
        require(origin in ("*", "null") or _ORIGIN.fullmatch(origin))
    return origins


ORIGINS: ValueType[tuple[str, ...]] = ValueType(
    "origins",
    "a comma-separated list of origins such as https://example.org or http://example.org:8080; or *",
    _read_origins,
    ",".join,
)


def _read_subprotocols(word: str) -> tuple[str, ...]:
    names = tuple(word.split(","))
    require(all(_TOKEN.fullmatch(name) for name in names))
    return names


SUBPROTOCOLS: ValueType[tuple[str, ...]] = ValueType(
    "subprotocols", "a comma-separated list of names of subprotocols", _read_subprotocols, ",".join
)


@dataclass(frozen=True, kw_only=True)
class WebSocketOptions:
    """The WebSocket options, a base class of ServiceOptions, which has the slots."""

    __slots__ = ()

    websocket: str | None = option(
        or_none(choice(*WEBSOCKET_MODES)), None, "websocket", "websocket",
        "Clients speak WebSocket (RFC 6455), and the handler gets what they send, and its output is sent to them: with "
        "lines a message is a line in each direction, with text and binary messages are pieces of a stream. Over TLS "
        "with tls_cert=.",
        example="count 8080/tcp server=/srv/bin/count websocket=lines",
    )  # fmt: skip
    websocket_path: str = option(
        WEB_PATH, "", "websocket", "websocket",
        "Path of the service; the paths below it are its own as well, as PATH_INFO. Other paths get the status 404. "
        "Default: any path.",
        example="count 8080/tcp server=/srv/bin/count websocket=lines websocket_path=/count",
    )  # fmt: skip
    websocket_origin: tuple[str, ...] = option(
        ORIGINS, (), "websocket", "websocket",
        "Allowed origins of web pages; * allows all. Default: the host and port of the connection. Clients that send "
        "no Origin are no browsers, and may always connect.",
        example="count 8080/tcp server=/srv/bin/count websocket=lines websocket_origin=https://example.org",
    )  # fmt: skip
    websocket_protocols: tuple[str, ...] = option(
        SUBPROTOCOLS, (), "websocket", "websocket",
        "Subprotocols of the service. The first of those that the client offers and that the service has is chosen; "
        "the handler finds it in WEBSOCKET_PROTOCOL.",
        example="chat 8080/tcp server=/srv/bin/chat websocket=text websocket_protocols=chat.v2,chat.v1",
    )  # fmt: skip
    websocket_max_message: int = option(
        BUFFER_SIZE, 1_048_576, "websocket", "websocket",
        "Maximum size of a message of the client, after decompression, and of a line of output. A larger one ends the "
        "connection with the status 1009.",
        example="count 8080/tcp server=/srv/bin/count websocket=lines websocket_max_message=64K",
    )  # fmt: skip
    websocket_deflate: bool = option(
        YES_NO, False, "websocket", "websocket",
        "Compress messages for clients that offer it (permessage-deflate, RFC 7692). Each message is compressed on "
        "its own.",
        example="count 8080/tcp server=/srv/bin/count websocket=lines websocket_deflate=yes",
    )  # fmt: skip
    websocket_ping: float | None = option(
        or_none(TIMEOUT), None, "websocket", "websocket",
        "Send a Ping to a client that has sent nothing for this time. Its Pong counts as activity for idle_timeout. "
        "Default: a third of idle_timeout, and no Pings without it.",
        example="count 8080/tcp server=/srv/bin/count websocket=lines websocket_ping=30s",
    )  # fmt: skip

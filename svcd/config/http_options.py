"""The options of http services."""

from __future__ import annotations

import re
from dataclasses import dataclass

from svcd.config.access_options import LIMIT
from svcd.config.option_info import option
from svcd.config.process_options import MEMORY_SIZE, SIZE_LIMIT
from svcd.config.value_types import COUNT, NAMES, PATH, TIMEOUT, YES_NO, ValueType, choice, or_none, require

__all__ = ["FIELD_VALUE", "URL_PATH", "HttpOptions"]


def _read_field_value(word: str) -> str:
    # RFC 9110, section 5.5, without obs-text: no control characters, no blank at either end.
    require(re.fullmatch("[!-~](?:[ -~]*[!-~])?", word))
    return word


FIELD_VALUE: ValueType[str] = ValueType(
    "field value", "the value of an HTTP field, in printable ASCII characters", _read_field_value, str
)


def _read_url_path(word: str) -> str:
    # Segments as they are after decoding; a client may encode them.
    require(re.fullmatch(r"/(?:(?!\.)[-A-Za-z0-9._~]+/)*", word))
    return word


URL_PATH: ValueType[str] = ValueType(
    "path in URLs", "a path in URLs that begins and ends with a slash, such as /cgi-bin/", _read_url_path, str
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """The values of the options of http services."""

    root: str = option(
        PATH, "", "http", "http",
        "Directory of the files to serve. Default: a page that greets the client.",
        example="http 80/tcp root=/srv/www",
    )  # fmt: skip
    index: tuple[str, ...] = option(
        NAMES, ("index.html",), "http", "http",
        "Files to send when a directory is requested; the first one that exists is sent.",
        example="http 80/tcp root=/srv/www index=index.html,index.htm",
    )  # fmt: skip
    symlinks: bool = option(
        YES_NO, False, "http", "http",
        "Follow symbolic links below root, including links to files outside root.",
        example="http 80/tcp root=/srv/www symlinks=yes",
    )  # fmt: skip
    listing: bool = option(
        YES_NO, False, "http", "http",
        "List the files of a directory without an index file: a page, or JSON for clients that prefer it (Accept).",
        example="http 80/tcp root=/srv/www listing=yes",
    )  # fmt: skip
    types: str = option(
        PATH, "", "http", "http",
        "File with media types by file name extension, in the format of mime.types: a type and its extensions on each "
        "line. They are added to the known types and replace them.",
        example="http 80/tcp root=/srv/www types=/etc/svcd/mime.types",
    )  # fmt: skip
    cgi: str = option(
        PATH, "", "http", "http",
        "Directory of CGI programs (RFC 3875), inside chroot= if that is set. A program is started for each request "
        "below cgi_path, by the launcher of the service, with its user=, limits and environment. The program of "
        "/cgi-bin/sub/script/more is sub/script, and /more its PATH_INFO. Only executable regular files are started, "
        "no names that begin with a dot, and symbolic links only with symlinks=yes.",
        example="http 80/tcp root=/srv/www cgi=/srv/cgi-bin user=nobody",
    )  # fmt: skip
    cgi_path: str = option(
        URL_PATH, "/cgi-bin/", "http", "cgi",
        "Path of the CGI programs in URLs.",
        example="http 80/tcp cgi=/srv/cgi-bin user=nobody cgi_path=/scripts/",
    )  # fmt: skip
    cgi_timeout: float = option(
        TIMEOUT, 60.0, "http", "cgi",
        "Maximum time that a CGI program may be without input or output while neither has to wait for the client. It "
        "gets SIGTERM, and SIGKILL 2 s later; a client without a response gets 504. A request also waits this long for "
        "cgi_instances, and then gets 503.",
        example="http 80/tcp cgi=/srv/cgi-bin user=nobody cgi_timeout=10s",
    )  # fmt: skip
    cgi_instances: int = option(
        LIMIT, 64, "http", "cgi",
        "Maximum number of CGI programs of the service that run at the same time; further requests wait.",
        example="http 80/tcp cgi=/srv/cgi-bin user=nobody cgi_instances=16",
    )  # fmt: skip
    cache_control: str | None = option(
        FIELD_VALUE, None, "http", "http",
        "Value of the Cache-Control field of files. Default: no such field.",
        example="http 80/tcp root=/srv/www cache_control='public, max-age=3600'",
    )  # fmt: skip
    https_redirect: bool = option(
        YES_NO, False, "http", "http",
        "Redirect all requests to https:// at port 443 of the same host, except requests below "
        "/.well-known/acme-challenge/, which an ACME client answers by files in root.",
        example="http 80/tcp root=/srv/www https_redirect=yes",
    )  # fmt: skip
    keepalive_requests: int | None = option(
        or_none(COUNT), 1000, "http", "http server",
        "Maximum number of requests on a connection; the last response announces the close.",
        example="http 80/tcp keepalive_requests=100",
    )  # fmt: skip
    max_request_target: int = option(
        MEMORY_SIZE, 8192, "http", "http server",
        "Maximum length of the path and query of a request, in bytes; more is answered by 414.",
        example="http 80/tcp max_request_target=2K",
    )  # fmt: skip
    max_header_size: int = option(
        MEMORY_SIZE, 32_768, "http", "http server",
        "Maximum size of the head of a request, and of all its trailers, in bytes; more is answered by 431.",
        example="http 80/tcp max_header_size=16K",
    )  # fmt: skip
    max_header_fields: int = option(
        COUNT, 100, "http", "http server",
        "Maximum number of header fields and trailers of a request; more is answered by 431.",
        example="http 80/tcp max_header_fields=50",
    )  # fmt: skip
    max_body_size: int = option(
        SIZE_LIMIT, 1_048_576, "http", "http server",
        "Maximum size of the body of a request, in bytes; more is answered by 413. Bodies are not kept in memory.",
        example="http 80/tcp max_body_size=64K",
    )  # fmt: skip
    access_log: str | None = option(
        or_none(choice("combined", "json")), None, "http", "http server",
        "Write a line for each request: to access_log_file in the combined format of Apache and nginx, or as JSON; "
        "without access_log_file as a line `request` of the log, in its own format.",
        example="http 80/tcp root=/srv/www access_log=combined access_log_file=/var/log/svcd/access.log",
    )  # fmt: skip
    access_log_file: str = option(
        PATH, "", "http", "http server",
        "File of the lines of access_log, which services may share. It is opened again on SIGUSR1. Default: the log.",
        example="http 80/tcp root=/srv/www access_log=json access_log_file=/var/log/svcd/access.json",
    )  # fmt: skip

"""Request targets that try to leave the root of static files, by kind.

`{secret}` stands for the name of a file beside the root. The lists are written from the decoding rules of RFC 3986 and
UTF-8, and from what other systems make of a path: Windows, servlet containers, CGI.
"""

from __future__ import annotations

__all__ = ["TRAVERSALS"]

_UP = "../"
#: Spellings of `..`.
_DOTS = [
    "..", "%2e%2e", "%2E%2E", ".%2e", "%2e.", "%252e%252e", "%25%32%65%25%32%65", "%c0%ae%c0%ae", "%e0%80%ae%e0%80%ae",
    "%f0%80%80%ae%f0%80%80%ae", "%c0%2e%c0%2e", "%uff0e%uff0e", "%u002e%u002e", "%ef%bc%8e%ef%bc%8e", "%e2%80%a5",
    "..%00", "%00..", "..;", "..;x=y", "..%3b", "..%20", "%20..", "..%09", "...", "....", "..%2500", "..%c2%a0",
    "..%e2%80%8b", ".%0d.", ".%0a.", "%2e%2e%23", "..%3f", "0x2e0x2e", "%%32%65%%32%65", "%2%65%2%65", "\\.\\.",
]  # fmt: skip
#: Spellings of a slash.
_SLASHES = [
    "/", "%2f", "%2F", "%5c", "%5C", "\\", "%252f", "%255c", "%c0%af", "%c1%9c", "%e0%80%af", "%u2215", "%u2216",
    "%ef%bc%8f", "%e2%88%95", "//", "/./", "/.//", "%00/", "/%00", "/%2e/", ";/", "/;/", "%0a", "%09/", "\\/", "%c1%af",
    "%bg%qf", "%f8%80%80%80%af", "%fc%80%80%80%80%af",
]  # fmt: skip
#: Names of files that every system has, absolute and in other notations.
_ABSOLUTE = [
    "/etc/passwd", "//etc/passwd", "///etc/passwd", "//127.0.0.1/etc/passwd", "/%2fetc/passwd", "/%2f%2fetc%2fpasswd",
    "file:///etc/passwd", "http:///etc/passwd", "http://x/../../etc/passwd", "http://x/%2fetc/passwd",
    "/C:/windows/win.ini",
    "/c%3a%5cwindows%5cwin.ini", "/\\\\localhost\\c$\\boot.ini", "/%5c%5clocalhost%5cc$", "/proc/self/environ",
    "/../proc/self/environ", "/./../proc/self/root/etc/passwd", "/proc/self/root/{secret}", "/proc/self/cwd/{secret}",
    "/dev/fd/3", "/~root/.profile", "/~/{secret}", "/%7eroot/{secret}", "/$HOME/{secret}", "/{{secret}}", "/*/{secret}",
    "/..*/{secret}", "/[.][.]/{secret}", "*", "", "?/../{secret}", "#/../{secret}", "/#/../{secret}", "/?/../{secret}",
    "../{secret}", "..", ".", "./", "/.", "/..", "/../", "/...", "/..?", "/..#", "/%2e%2e?x", "/..%00/", "/..%00.html",
]  # fmt: skip
#: Hidden files, and names after which other servers stop reading or drop characters.
_HIDDEN = [
    "/.secret", "/%2esecret", "/./.secret", "//.secret", "/sub/../.secret", "/.git/config", "/%2egit/config",
    "/.git%2fconfig", "/.git/", "/.git", "/.git/.", "/sub/.git", "/.well-known/../.secret", "/.well-known/.secret",
    "/.well-known/%2e%2e/.secret", "/.well-known%2f..%2f.secret", "/.Secret", "/.secret/", "/.secret%00", "/.secret%20",
    "/.secret%2f", "/.secret::$DATA", "/.secret.", "/.secret;x", "/.secret?x", "/.secret#x", "/\\.secret",
    "/%5c.secret",
    "/.%73ecret", "/%2e%73ecret", "/..well-known/x", "/.well-known./.secret", "/sub/.well-known/../../.secret",
]  # fmt: skip

#: The targets.
TRAVERSALS = sorted(
    {f"/{dots}/{{secret}}" for dots in _DOTS}
    | {f"/sub/{dots}/{dots}/{{secret}}" for dots in _DOTS}
    | {f"/..{slash}{{secret}}" for slash in _SLASHES}
    | {f"/sub{slash}..{slash}..{slash}{{secret}}" for slash in _SLASHES}
    | {f"/sub/%2e%2e{slash}%2e%2e{slash}{{secret}}" for slash in _SLASHES}
    | {f"/{_UP * depth}{path}" for depth in (1, 2, 8, 60) for path in ("{secret}", "etc/passwd")}
    | {f"/{'sub/../' * depth}../{{secret}}" for depth in (1, 5)}
    | set(_ABSOLUTE)
    | set(_HIDDEN)
)

"""Imports of modules that no service needs yet, in a thread after the daemon has begun to serve.

At its start a daemon imports the modules that its services need. A reload may need more; an installation may have
replaced the files by then, and modules of two versions do not fit together. Imports also must not block the reactor.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import threading
from typing import TYPE_CHECKING

import svcd

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SECONDS", "end_imports", "import_rest", "module_names"]

#: How long the daemon serves before the thread starts, in seconds, so that imports do not delay the first clients.
SECONDS = 1.0
#: Packages of which a reload, a command or an upgrade may need further modules.
_PACKAGES = (
    "config",
    "connections",
    "control",
    "net",
    "process",
    "protocols",
    "sockets",
    "supervisor",
    "tls",
    "upgrade",
    "wire",
)
#: Modules of libraries that are imported in functions, and codecs, which Python imports at their first use, such
#: as idna by getaddrinfo(): after setuid(2) they may be unreadable.
_LIBRARIES = (
    "encodings.ascii",
    "encodings.idna",
    "encodings.unicode_escape",
    "encodings.utf_8_sig",
    "ifaddr",
    "twisted.internet.endpoints",
    "twisted.internet.inotify",
)


def module_names() -> Iterator[str]:
    """Yield the full names of the modules to import, packages included."""
    yield from _LIBRARIES
    for name in _PACKAGES:
        package = f"svcd.{name}"
        yield package
        paths = [f"{path}/{name}" for path in svcd.__path__]
        yield from (found.name for found in pkgutil.walk_packages(paths, f"{package}."))


#: The longest wait for the import of one module at the exit, in seconds.
_EXIT_SECONDS = 1.0
_exits = threading.Event()
_importing = threading.Lock()


def import_rest() -> None:
    """Import every module that a daemon may need later, except those whose libraries are not installed."""
    with _importing:
        for name in module_names():
            if _exits.is_set():
                return
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def end_imports() -> None:
    """Let import_rest() end after the module that it imports now, and wait for that.

    It has to be called at the interpreter's exit, which ends threads; in one that imports a library in C this can crash
    the process.
    """
    _exits.set()
    if _importing.acquire(timeout=_EXIT_SECONDS):
        _importing.release()

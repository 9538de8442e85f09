"""Imports of modules that no service needs yet, made in a thread once the daemon serves.

A daemon imports at its start what its services need. A reload may need more; by then an installation may have replaced
the files, and modules of two versions do not fit together. The reactor is not to wait for imports either.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from typing import TYPE_CHECKING

import svcd

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SECONDS", "import_rest", "module_names"]

#: How long the daemon serves before the thread starts, in seconds: the first clients don't compete with imports.
SECONDS = 1.0
#: Packages that a reload, a command or an upgrade may need more modules of.
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
#: Modules of libraries that functions import: after setuid(2) they may be out of reach.
_LIBRARIES = ("ifaddr", "twisted.internet.endpoints", "twisted.internet.inotify")


def module_names() -> Iterator[str]:
    """Yield the full names of the modules to import, packages included."""
    yield from _LIBRARIES
    for name in _PACKAGES:
        package = f"svcd.{name}"
        yield package
        paths = [f"{path}/{name}" for path in svcd.__path__]
        yield from (found.name for found in pkgutil.walk_packages(paths, f"{package}."))


def import_rest() -> None:
    """Import every module that a daemon may need later, but for those whose libraries are not installed."""
    for name in module_names():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)

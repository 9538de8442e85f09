"""Starting CGI programs (RFC 3875): the program of a request is found below the directory of a service.

The daemon gives the path of a request and the variables that depend on it. Only the launcher looks for the program,
with the rights of the service's user and in its root directory, so the daemon needs no access to the directory.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from svcd.process.programs import ProgramStarter

if TYPE_CHECKING:
    from svcd.process.spec import LaunchSpec

__all__ = ["CgiRunner", "request_variables"]

#: The variables that a request may set, by name and by prefix; none of these makes a program load or run code.
#: HTTP_PROXY does: many libraries take it for the variable that names a proxy (httpoxy, CVE-2016-5385).
_NAMES = frozenset({
    b"CONTENT_LENGTH", b"CONTENT_TYPE", b"DOCUMENT_ROOT", b"GATEWAY_INTERFACE", b"HTTPS", b"PATH_INFO", b"QUERY_STRING",
    b"REDIRECT_STATUS", b"SCRIPT_NAME",
})  # fmt: skip
_MOST_NAMES = 256
_allowed = set(_NAMES)
_PREFIXES = (b"HTTP_", b"REMOTE_", b"REQUEST_", b"SERVER_", b"SSL_")
_PROXY = b"HTTP_PROXY"

_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
#: The beginning of the name of a program that writes a whole HTTP response (RFC 3875, section 5).
_NPH = b"nph-"


def request_variables(data: bytes) -> dict[bytes, bytes]:
    """Return the variables of a Connection message that a request may set."""
    values = {}
    for item in data.split(b"\0"):
        name, equals, value = item.partition(b"=")
        if equals and (name in _allowed or _is_allowed(name)):
            values[name] = value
    return values


def _is_allowed(name: bytes) -> bool:
    """Return whether a request may set a variable; remember some names that it may set."""
    if not name.startswith(_PREFIXES) or name == _PROXY:
        return False
    if len(_allowed) < _MOST_NAMES:
        _allowed.add(name)
    return True


class CgiRunner:
    """Starts the CGI program of a request.

    SCRIPT_NAME of the request is the path of the directory in URLs, and PATH_INFO the rest of the path of the request,
    both decoded.

    Args:
        spec: the launch spec of the service.

    Attributes:
        nph: whether the program started last writes a whole HTTP response.
    """

    def __init__(self, spec: LaunchSpec) -> None:
        self._starter = ProgramStarter(spec)
        self._root = os.fsencode(spec.cgi).rstrip(b"/")
        self._symlinks = spec.symlinks
        self._flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | (0 if spec.symlinks else os.O_NOFOLLOW)
        self.nph = False

    def idle_since(self) -> float:
        """Return 0: all programs are processes."""
        return 0.0

    def start(self, _connection_id: int, environment: bytes, fds: tuple[int, ...], stderr: int) -> int:
        """Start the program of a request.

        Args:
            _connection_id: not used.
            environment: the variables of the request.
            fds: the pipe of the output, and that of the input if there is one.
            stderr: the descriptor that becomes standard error.

        Returns:
            The pid of the process.

        Raises:
            OSError: the process could not be started; ENOENT, ENOTDIR, ELOOP or ENAMETOOLONG: there is no such program;
                EACCES or EISDIR: the path names no executable regular file.
        """
        values = {**self._starter.environment, **request_variables(environment)}
        segments = values.get(b"PATH_INFO", b"").split(b"/")[1:]
        count = self._enter(segments)
        path = b"/" + b"/".join(segments[:count])
        rest = b"".join(b"/" + each for each in segments[count:])
        values[b"SCRIPT_NAME"] = values.get(b"SCRIPT_NAME", b"") + path
        values[b"SCRIPT_FILENAME"] = command = self._root + path
        if not rest:
            del values[b"PATH_INFO"]
        else:
            values[b"PATH_INFO"] = rest
            if b"DOCUMENT_ROOT" in values:
                values[b"PATH_TRANSLATED"] = values[b"DOCUMENT_ROOT"] + rest
        self.nph = segments[count - 1].startswith(_NPH)
        return self._starter.start((command, (command,)), values, (fds[1] if len(fds) > 1 else 0, fds[0], stderr))

    def _enter(self, segments: list[bytes]) -> int:
        """Find the program of a path, and make its directory the working directory.

        Each directory is opened relative to its parent (openat(2)). The program is then executed by its path, because
        many programs look for files beside it; a change of the tree in between gives the user that can make it nothing
        that this user could not do with a program there.

        Returns:
            The number of segments up to the program; those after it are its PATH_INFO.

        Raises:
            OSError: as start().
        """
        # The root itself may be a link.
        folder = os.open(self._root or b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for count, name in enumerate(segments, 1):
                if name.startswith(b".") or not name:
                    break
                mode = os.stat(name, dir_fd=folder, follow_symlinks=self._symlinks).st_mode
                if stat.S_ISDIR(mode):
                    outer, folder = folder, os.open(name, self._flags, dir_fd=folder)
                    os.close(outer)
                    continue
                if stat.S_ISLNK(mode):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if not stat.S_ISREG(mode) or not mode & _EXECUTABLE:
                    # Whether this user may execute it shows at the start, as EACCES too.
                    raise OSError(errno.EACCES, os.strerror(errno.EACCES))
                os.fchdir(folder)
                return count
        finally:
            os.close(folder)
        hidden = any(name.startswith(b".") for name in segments)
        raise OSError(*((errno.ENOENT, os.strerror(errno.ENOENT)) if hidden else (errno.EISDIR, "no program is named")))

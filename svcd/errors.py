"""Exceptions with the place of the error and a remedy, each with its sysexits(3) code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from svcd.model import ConfigProblem

__all__ = [
    "ActivationError",
    "ClientError",
    "CommandError",
    "ConfigError",
    "FaultError",
    "ListenError",
    "ListenErrors",
    "ServerError",
    "StartFailure",
    "StoppingError",
    "SvcdError",
    "UnavailableError",
    "UsageError",
    "WrongAnswerError",
    "raised_by",
    "reason_of",
]


class SvcdError(Exception):
    """Base class of the errors whose text is for the user of svcd."""


class UsageError(SvcdError):
    """Invalid options or arguments; the text has the reason and a remedy."""

    #: sysexits(3) EX_USAGE.
    exit_code = os.EX_USAGE


class ActivationError(SvcdError):
    """Inherited descriptors that can't be used."""

    #: sysexits(3) EX_CONFIG: a systemd unit has to be changed.
    exit_code = os.EX_CONFIG


class ConfigError(SvcdError):
    """Mistakes in the services file; nothing was started or changed.

    Args:
        problems: every mistake that was found, in the order of the files; not empty. Duplicates are removed: a mistake
            in @defaults is found for each service that has the default.
    """

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(map(str, self.problems)))

    #: sysexits(3) EX_CONFIG.
    exit_code = os.EX_CONFIG


class FaultError(ConfigError):
    """Faults of the machine that prevent services, where all services must be served (`--strict`, a check).

    The text of the services file has no mistake.
    """

    exit_code = 1


class ListenError(SvcdError):
    """Failure to listen on an address of a service.

    Args:
        service: the id of the service, `echo/tcp`.
        address: the address as text, `0.0.0.0:7` or a path.
        cause: the system's error text, or another reason.
        remedy: what the user can do about it.
        number: the errno of the system; 0 for another reason.

    Attributes:
        owner_sought: whether the process that uses the address was looked up.
    """

    def __init__(self, service: str, address: str, cause: str, remedy: str, number: int = 0) -> None:
        self.number = number
        self.owner_sought = False
        self.service = service
        self.address = address
        self.cause = cause
        self.remedy = remedy
        super().__init__(f"{service}: can't listen on {address}: {cause}; {remedy}")


class ListenErrors(SvcdError):  # noqa: N818 - several of them
    """Failures to listen on addresses; no address is open.

    Args:
        errors: an error for each address, and faults of other services if no service can be served; not empty.
        with_owners: returns a copy that names the processes that use the addresses; blocks for a while. None if the
            texts name the known ones already.
    """

    def __init__(
        self,
        errors: Sequence[ListenError | ConfigProblem],
        with_owners: Callable[[], ListenErrors] | None = None,
    ) -> None:
        self.errors = tuple(errors)
        self.with_owners = with_owners
        super().__init__("\n".join(map(str, errors)))

    #: sysexits(3) EX_OSERR.
    exit_code = os.EX_OSERR


class CommandError(SvcdError):
    """Failure of a command of the control protocol.

    Args:
        text: the reason and a remedy.
        code: for programs: refused, busy if the command may succeed soon, or config for mistakes in a services file.
        problems: the problems of the services file, if these are the reason.
    """

    def __init__(self, text: str, code: str = "refused", problems: Sequence[ConfigProblem] = ()) -> None:
        super().__init__(text)
        self.code = code
        self.problems = tuple(problems)


class StoppingError(CommandError):
    """Command received while the daemon stops, possibly because an upgrade has replaced it."""

    def __init__(self) -> None:
        super().__init__("the daemon is about to stop, or an upgrade has replaced it; try again", "busy")


class ClientError(SvcdError):
    """Failure of a client command; the text is the reason."""

    exit_code = 1


class WrongAnswerError(ClientError):
    """Valid answer of a server that differs from the expected one."""


class UnavailableError(ClientError):
    """Server that can't be reached, or does not answer in time."""

    #: sysexits(3) EX_UNAVAILABLE.
    exit_code = os.EX_UNAVAILABLE


class ServerError(ClientError):
    """Server that violates the protocol, closes the connection early, or has the wrong identity."""

    #: sysexits(3) EX_PROTOCOL.
    exit_code = os.EX_PROTOCOL


class StartFailure(SystemExit, Exception):  # noqa: N818 - it ends the program, it is not caught
    """Failure of the daemon to start; LogSetup.report_start_failure() prints the reasons.

    As a SystemExit it ends twistd with the code and without a traceback. As an Exception it makes twistd remove its pid
    file and report the failure to the parent process that waits for the daemon.

    Args:
        code: the exit status, from sysexits(3).
        reason: a single line, for the terminal of the waiting parent process.
        lines: all reasons; `reason` by default.
        prefix: the beginning of each line on the standard error.
    """

    def __init__(self, code: int, reason: str, lines: Sequence[str] = (), prefix: str = "svcd: ") -> None:
        super().__init__(code)
        self.reason = reason
        self.lines = lines or (reason,)
        self._prefix = prefix

    def report(self) -> None:
        """Print the reasons to the standard error of the process."""
        # twistd may have replaced sys.stderr by its log. print() takes the standard output instead of None.
        if sys.__stderr__ is not None:
            for line in self.lines:
                print(f"{self._prefix}{line}", file=sys.__stderr__)

    def __str__(self) -> str:
        return self.reason


def reason_of(error: BaseException) -> str:
    """Return the reason of an exception of foreign code in one line: the system's error text, or `raised_by` text."""
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or error}"
    if isinstance(error, KeyError):
        return str(error.args[0]) if error.args else "not found"
    return raised_by(traceback.extract_tb(error.__traceback__)[-1].name, error)


def raised_by(name: str, error: BaseException) -> str:
    """Return a line such as `NAME raises TypeError: text (file:line)`, with the place that raised the exception."""
    *_, frame = traceback.extract_tb(error.__traceback__)
    message = " ".join(str(error).split())
    return f"{name} raises {type(error).__name__}: {message} ({frame.filename}:{frame.lineno})"

"""Exceptions with the place of the error and a remedy, each with its sysexits(3) code."""

from __future__ import annotations

import os
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
    """The base of everything that svcd raises for its user to read."""


class UsageError(SvcdError):
    """What was asked for makes no sense; the text says why and what would."""

    #: sysexits(3) EX_USAGE.
    exit_code = os.EX_USAGE


class ActivationError(SvcdError):
    """The inherited descriptors are of no use."""

    #: sysexits(3) EX_CONFIG: a unit is to be changed.
    exit_code = os.EX_CONFIG


class ConfigError(SvcdError):
    """The services file can't be used; nothing was started or changed.

    Args:
        problems: every mistake that was found, in the order of the files. Never empty. What stands in @defaults is
            found for each service that has it, and is one mistake.
    """

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(map(str, self.problems)))

    #: sysexits(3) EX_CONFIG.
    exit_code = os.EX_CONFIG


class FaultError(ConfigError):
    """Services can't be served as the machine is, and all of them are to be served (`--strict`, a check).

    The text of the services file has no mistake.
    """

    exit_code = 1


class ListenError(SvcdError):
    """One address of one service can't be opened.

    Args:
        service: the service's identity, `echo/tcp`.
        address: the address as a person writes it, `0.0.0.0:7` or a path.
        cause: the error of the system, or what stands in the way.
        remedy: what the reader can do about it.
        number: the errno of the system; 0 if it was not the system that refused.

    Attributes:
        owner_sought: whether the process that has the address was looked for.
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
    """Some addresses can't be opened; none is open.

    Args:
        errors: one for each address, never empty.
        problems: faults of other services, where no service can be served.
        with_owners: returns the same with the processes that have addresses, which takes a while; None where they are
            named, as far as they are known.
    """

    def __init__(
        self,
        errors: Sequence[ListenError],
        problems: Sequence[ConfigProblem] = (),
        with_owners: Callable[[], ListenErrors] | None = None,
    ) -> None:
        self.errors = tuple(errors)
        self.problems = tuple(problems)
        self.with_owners = with_owners
        super().__init__("\n".join(map(str, [*errors, *problems])))

    #: sysexits(3) EX_OSERR.
    exit_code = os.EX_OSERR


class CommandError(SvcdError):
    """A command of the control protocol can't be obeyed.

    Args:
        text: why, and what to do.
        code: for programs: refused, busy if the same may be obeyed soon, or config for mistakes of a services file.
    """

    def __init__(self, text: str, code: str = "refused") -> None:
        super().__init__(text)
        self.code = code


class StoppingError(CommandError):
    """A command has come too late: this daemon is about to stop, perhaps since an upgrade has replaced it."""

    def __init__(self) -> None:
        super().__init__("the daemon is about to stop, or an upgrade has replaced it; ask again", "busy")


class ClientError(SvcdError):
    """A client command failed; the text is the reason."""

    exit_code = 1


class WrongAnswerError(ClientError):
    """The server has answered correctly, but not as expected."""


class UnavailableError(ClientError):
    """The server can't be reached, or does not answer in time."""

    #: sysexits(3) EX_UNAVAILABLE.
    exit_code = os.EX_UNAVAILABLE


class ServerError(ClientError):
    """The server violates the protocol, ends early, or has the wrong identity."""

    #: sysexits(3) EX_PROTOCOL.
    exit_code = os.EX_PROTOCOL


class StartFailure(SystemExit, Exception):  # noqa: N818 - it ends the program, it is not caught
    """The daemon can't start; the reasons have been printed.

    Being a SystemExit it ends twistd with the code and without a traceback; being an Exception as well,
    it lets twistd take back its pid file and tell the process that waits for the daemon.

    Args:
        code: the exit status, from sysexits(3).
        reason: one line, for the terminal that waits for the daemon.
        lines: all reasons, for the log; the one line by default.
    """

    def __init__(self, code: int, reason: str, lines: Sequence[str] = ()) -> None:
        super().__init__(code)
        self.reason = reason
        self.lines = lines or (reason,)

    def __str__(self) -> str:
        return self.reason


def reason_of(error: BaseException) -> str:
    """Return what foreign code raised and where, or what the system said, in one line."""
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or error}"
    if isinstance(error, KeyError):
        return str(error.args[0]) if error.args else "not found"
    return raised_by(traceback.extract_tb(error.__traceback__)[-1].name, error)


def raised_by(name: str, error: BaseException) -> str:
    """Return that something has raised an exception, with the place in its code, in one line."""
    *_, frame = traceback.extract_tb(error.__traceback__)
    message = " ".join(str(error).split())
    return f"{name} raises {type(error).__name__}: {message} ({frame.filename}:{frame.lineno})"

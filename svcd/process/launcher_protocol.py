"""State of the messages exchanged with one launcher, and which reports it may send next. No I/O."""

from __future__ import annotations

import os
from enum import Enum, auto
from typing import TYPE_CHECKING

from svcd.process.messages import (
    MAX_REASON,
    Changed,
    Dropped,
    Ended,
    Failed,
    Idle,
    Ready,
    Started,
    Starting,
    StderrLine,
)
from svcd.process.stderr import MAX_BLOCK

if TYPE_CHECKING:
    from svcd.process.messages import Message
    from svcd.process.stderr import OutputLimit

__all__ = ["MAX_UNANSWERED", "LauncherProtocol"]

#: Maximum number of connections sent to a launcher whose start or failure it has not reported.
MAX_UNANSWERED = 256
#: Maximum valid numbers of seconds and bytes, and error number, in a report.
_MAX_SECONDS = 1e9
_MAX_BYTES = 2**62
_MAX_ERRNO = 4095


class _State(Enum):
    SENT = auto()
    STARTING = auto()
    STARTED = auto()


class LauncherProtocol:
    """The state of the messages exchanged with one launcher.

    Its memory is bounded by the sent connections: a report about any other connection is an error.

    Args:
        output: the limit on reported handler output; None for no limit.
        announced: whether the launcher reports Starting before it starts a handler. Handlers in threads report Started
            themselves before they begin. CGI programs are not announced either, to save the time.
        cgi: whether the handlers are CGI programs.

    Attributes:
        ready: whether the launcher has reported Ready.
    """

    def __init__(self, output: OutputLimit | None = None, *, announced: bool = True, cgi: bool = False) -> None:
        self.ready = False
        self._before_started = _State.STARTING if announced else _State.SENT
        # A CGI program may have begun as soon as it was sent, and must not be started twice.
        self._maybe_started = _State.SENT if cgi else _State.STARTING
        self._cgi = cgi
        self._output = output
        self._states: dict[int, _State] = {}
        self._unanswered = 0
        self._highest = 0
        self._idle_reported = self._module_check_pending = False

    @property
    def idle(self) -> bool:
        """Whether no report about a connection is expected."""
        return not self._states

    @property
    def full(self) -> bool:
        """Whether no more connections may be sent before the launcher answers."""
        return self._unanswered >= MAX_UNANSWERED

    @property
    def unanswered(self) -> int:
        """The number of sent connections whose start or failure is not reported yet."""
        return self._unanswered

    @property
    def starting(self) -> list[int]:
        """The ids of connections that may or may not have a process."""
        return [connection_id for connection_id, state in self._states.items() if state is self._maybe_started]

    def connection_sent(self, connection_id: int) -> None:
        """Record a sent connection."""
        self._states[connection_id] = _State.SENT
        self._unanswered += 1
        self._highest = max(self._highest, connection_id)

    def module_check_sent(self) -> None:
        """Record a sent CheckModule message."""
        self._module_check_pending = True

    def check(self, report: Message) -> None:
        """Check a report and record it.

        Raises:
            ValueError: the report is not allowed now; the text has the reason.
        """
        if not self.ready and not isinstance(report, Ready):
            raise ValueError(f"{type(report).__name__} before Ready")
        match report:
            case Starting(connection_id):
                self._move(report, connection_id, (_State.SENT,), _State.STARTING)
            case Started(connection_id, pid, nph):
                _require(pid > 0, f"Started with pid {pid}")
                _require(self._cgi or not nph, "Started with nph for a handler that is no CGI program")
                self._move(report, connection_id, (self._before_started,), _State.STARTED)
            case Failed(connection_id, errno):
                _require(0 < errno <= _MAX_ERRNO, f"Failed with errno {errno}")
                self._move(report, connection_id, (_State.SENT, _State.STARTING), None)
            case Ended(connection_id):
                _check_end(report)
                self._move(report, connection_id, (_State.STARTED,), None)
            case StderrLine() | Dropped():
                self._check_output(report)
            case Ready(problem):
                _require(not self.ready, "a second Ready")
                _require(len(problem) <= MAX_REASON, "a Ready that is too long")
                self.ready = not problem
            case Idle():
                _require(all(state is _State.SENT for state in self._states.values()), "Idle with processes")
                _require(not self._idle_reported, "a second Idle")
                self._idle_reported = True
            case Changed(module):
                _require(self._module_check_pending, "Changed without a question")
                _require(len(module) <= MAX_REASON, "a Changed that is too long")
                self._module_check_pending = False
            case _:
                raise ValueError(f"{type(report).__name__}, which no launcher reports")

    def _move(self, report: Message, connection_id: int, before: tuple[_State, ...], after: _State | None) -> None:
        state = self._states.get(connection_id)
        if state not in before:
            known = "that it was not sent" if state is None else f"that is {state.name.lower()}"
            raise ValueError(f"{type(report).__name__} for a connection {known} ({connection_id})")
        if after is None:
            del self._states[connection_id]
        else:
            self._states[connection_id] = after
        if after is not _State.STARTING and state is not _State.STARTED:
            self._unanswered -= 1
        self._idle_reported = False

    def _check_output(self, report: StderrLine | Dropped) -> None:
        size = 0
        if isinstance(report, StderrLine):
            size = len(report.text)
            _require(
                report.connection_id <= self._highest,
                f"output of a connection that it was not sent ({report.connection_id})",
            )
            _require(size <= MAX_BLOCK, f"{size} bytes of output in one piece")
        if self._output is not None:
            _require(self._output.take(size), "more output than stderr_rate allows")


def _check_end(report: Ended) -> None:
    status = report.status
    exited = 0 <= status <= 0xFFFF and (os.WIFEXITED(status) or os.WIFSIGNALED(status))
    _require(exited, f"Ended with status {status}")
    # Comparisons with NaN are false.
    seconds = all(0 <= value <= _MAX_SECONDS for value in (report.user, report.system))
    _require(seconds and all(-1 <= value <= _MAX_BYTES for value in (report.bytes_in, report.bytes_out)),
             "Ended with impossible numbers")  # fmt: skip


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)

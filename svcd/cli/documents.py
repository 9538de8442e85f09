"""JSON documents that svcctl prints with --json; their JSON Schemas are the files of the folder schemas/.

A field is never removed or given another meaning within a version of its schema; fields may be added.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from svcd.config.option_info import GROUPS
from svcd.config.options import TABLE
from svcd.model import Severity, SocketType
from svcd.protocols.catalog import BUILTINS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from svcd.cli.explain import Explanation
    from svcd.config.endpoints import Endpoint
    from svcd.model import ConfigProblem

__all__ = ["check_document", "explain_document", "options_document"]

_VERSION = 1


def check_document(
    file: str, user: str, endpoints: Iterable[Endpoint], problems: Sequence[ConfigProblem]
) -> dict[str, Any]:
    """Return the document of `svcctl check --json`.

    Args:
        file: the services file, as text.
        user: the user that the file was checked as.
        endpoints: where its services would listen.
        problems: its mistakes, or the faults and warnings of a file without mistakes.
    """
    return {
        "version": _VERSION,
        "file": file,
        # become() explains after the name why it could not.
        "user": user.partition(" ")[0],
        "ok": all(problem.severity is Severity.WARNING for problem in problems),
        "listeners": [
            {
                "service": each.service.id,
                "address": each.address,
                "runs": each.service.handler_text,
                "tls": each.service.tls,
            }
            for each in endpoints
        ],
        "problems": [problem.document() for problem in problems],
    }


def explain_document(
    file: str, explanations: Iterable[Explanation], problems: Iterable[ConfigProblem] = ()
) -> dict[str, Any]:
    """Return the document of `svcctl explain --json`.

    Args:
        file: the services file, as text.
        explanations: one for each service of the name.
        problems: the mistakes of the file.
    """
    return {
        "version": _VERSION,
        "file": file,
        "explanations": [
            {
                "service": each.service.id,
                "client": each.address,
                "time": datetime.fromtimestamp(each.moment, each.zone).astimezone(each.zone).isoformat(),
                "admitted": each.admitted,
                "verdict": each.verdict,
                "client_certificate": each.certificate or None,
                "steps": [
                    {
                        "check": step.check.value,
                        "outcome": step.outcome.value,
                        "text": step.text,
                        "rule": None if step.rule is None else step.rule.text,
                        "location": None
                        if step.rule is None or step.rule.location is None
                        else step.rule.location.document(),
                    }
                    for step in each.steps
                ],
            }
            for each in explanations
        ],
        "problems": [problem.document() for problem in problems],
    }


def options_document(name: str | None = None) -> dict[str, Any]:
    """Return the document of `svcctl options --json`: all options and built-ins, or those of a name."""
    return {
        "version": _VERSION,
        "options": [
            {
                "name": info.name,
                "group": GROUPS[info.group],
                "takes": info.value_type.accepts,
                "default": info.default_text or None,
                "services": info.scope_text(BUILTINS),
                "xinetd": info.xinetd or None,
                "description": info.help,
            }
            for info in TABLE.values()
            if name in (None, info.name)
        ],
        "builtins": [
            {
                "name": each,
                "protocols": ["tcp", "udp", "unix", "unixgram"]
                if SocketType.DATAGRAM in builtin.shapes
                else ["tcp", "unix"],
                "port": builtin.port,
                "client": builtin.client or None,
                "description": builtin.summary,
            }
            for each, builtin in BUILTINS.items()
            if name in (None, each)
        ],
    }

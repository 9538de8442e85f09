"""Lines of an access log of HTTP requests: the combined format of Apache and nginx, and JSON.

A line is made of the text of the request, which is the same for equal requests and may be kept, and of the rest.
"""

from __future__ import annotations

import json
import re
import time

__all__ = ["CombinedFormat", "JsonLineFormat", "RequestFacts", "printable"]

#: Method, target, version, Referer and User-Agent of a request; a dash for what it does not have.
RequestFacts = tuple[str, bytes, str, bytes, bytes]

_ESCAPED = re.compile(rb"[^ !#-\[\]-~]")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def printable(value: bytes) -> str:
    """Return a value in which quotes, backslashes and all but printable ASCII characters are escaped, as by nginx."""
    return _ESCAPED.sub(lambda match: b"\\x%02x" % match[0][0], value).decode("ascii")


class CombinedFormat:
    """The combined format: PEER - - [DATE] "REQUEST" STATUS BYTES "REFERER" "AGENT"."""

    def __init__(self) -> None:
        self._date = (-1, "")

    def request(self, facts: RequestFacts) -> str:
        """Return the text of a request, as a %-format for line()."""
        method, target, version, referer, agent = facts
        line = "-" if method == "-" else f"{method} {printable(target)} HTTP/{version}"
        fields = f'"{printable(referer)}" "{printable(agent)}"'
        return f'"{line.replace("%", "%%")}" %d %d {fields.replace("%", "%%")}'

    def line(self, request: str, peer: str, now: float, result: tuple[int, int, float]) -> str:
        """Return a line.

        Args:
            request: the text of the request.
            peer: the client's address.
            now: the time, in seconds since 1970.
            result: the status, the number of bytes of content that were sent, and the duration in seconds.
        """
        second = int(now)
        if second != self._date[0]:
            local = time.localtime(second)
            # strftime(3) would have the month in the language of the system.
            day = f"{local.tm_mday:02d}/{_MONTHS[local.tm_mon - 1]}/"
            self._date = second, day + time.strftime("%Y:%H:%M:%S %z", local)
        return f"{peer} - - [{self._date[1]}] {request % result[:2]}"


class JsonLineFormat:
    """JSON objects.

    Args:
        service: the id of the service.
    """

    def __init__(self, service: str) -> None:
        self._service = json.dumps(service)
        self._date = (-1, "", "")

    def request(self, facts: RequestFacts) -> str:
        """Return the text of a request."""
        method, target, version, referer, agent = facts
        values = {
            "method": method,
            "target": printable(target),
            "version": version,
            "referer": printable(referer),
            "agent": printable(agent),
        }
        return json.dumps(values, separators=(",", ":"))[1:]

    def line(self, request: str, peer: str, now: float, result: tuple[int, int, float]) -> str:
        """Return a line; see CombinedFormat.line()."""
        second, millisecond = divmod(int(now * 1000), 1000)
        if second != self._date[0]:
            local = time.localtime(second)
            offset = time.strftime("%z", local)
            self._date = second, time.strftime("%Y-%m-%dT%H:%M:%S", local), f"{offset[:3]}:{offset[3:]}"
        _, date, offset = self._date
        status, size, seconds = result
        return (
            f'{{"time":"{date}.{millisecond:03d}{offset}","service":{self._service},"peer":"{peer}","status":{status},'
            f'"bytes":{size},"seconds":{seconds:.6f},{request}'
        )

"""Payloads of daytime (RFC 867) and time (RFC 868)."""

from __future__ import annotations

import time

__all__ = ["EPOCH_1900", "daytime", "moment_1900", "time_1900"]

#: Seconds from 1900-01-01 to 1970-01-01, both 00:00 UTC (RFC 868).
EPOCH_1900 = 2_208_988_800


def daytime(now: float, *, utc: bool = False, iso8601: bool = False) -> bytes:
    """Return a line with the date and the time, ended by CRLF.

    Args:
        now: seconds since 1970-01-01 00:00 UTC.
        utc: whether to use coordinated universal time instead of the machine's local time.
        iso8601: the format: `2026-11-21T10:12:00+01:00`, or else `Sat Nov 21 10:12:00 2026`, the same in every locale.
    """
    parts = time.gmtime(now) if utc else time.localtime(now)
    if not iso8601:
        return time.asctime(parts).encode("ascii") + b"\r\n"
    offset = time.strftime("%z", parts)
    zone = "Z" if utc else f"{offset[:3]}:{offset[3:]}"
    return (time.strftime("%Y-%m-%dT%H:%M:%S", parts) + zone).encode("ascii") + b"\r\n"


def time_1900(now: float) -> bytes:
    """Return the seconds since 1900 as 4 bytes, unsigned, big-endian.

    The number of RFC 868 overflows in 2036; it wraps, as in NTP at the end of an era (RFC 5905, section 6).
    """
    return ((int(now) + EPOCH_1900) & 0xFFFF_FFFF).to_bytes(4, "big")


_ERA = 1 << 32


def moment_1900(data: bytes, near: float) -> int:
    """Return the time in 4 bytes of RFC 868, in seconds since 1970-01-01 00:00 UTC.

    The bytes do not determine the era of 136 years; the second era begins in 2036. The result is the time nearest to
    `near`.

    Args:
        data: 4 bytes.
        near: the approximate time, within 68 years.
    """
    first = int.from_bytes(data, "big") - EPOCH_1900
    return first + round((near - first) / _ERA) * _ERA

"""Conditional requests of HTTP (RFC 9110, section 13): validators, dates, and the evaluation of preconditions.

Malformed fields are ignored, except If-Match, which nothing matches then. The length of fields is bounded by that of a
request head.
"""

from __future__ import annotations

import calendar
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Validators", "failed_precondition", "parse_date", "range_applies"]

#: The number of cached fields, each at most as long as a request head. A client repeats its fields.
_KNOWN = 64

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_MONTH = "(?P<month>" + "|".join(_MONTHS) + ")"
_TIME = "(?P<hour>[01][0-9]|2[0-3]):(?P<minute>[0-5][0-9]):(?P<second>[0-5][0-9]|60)"
#: The three formats of RFC 9110, section 5.6.7: IMF-fixdate, and the obsolete ones of RFC 850 and asctime(3).
_DATES = tuple(
    re.compile(pattern.encode())
    for pattern in (
        f"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",
        f"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",
        f"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})",
    )
)
#: A two-digit year that appears to be more than this number of years in the future is one of the past.
_FUTURE_YEARS = 50

#: An entity tag (RFC 9110, section 8.8.3), and what separates two of them in a list with empty elements (5.6.1).
_TAG = re.compile(rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_SEPARATOR = re.compile(rb"[ \t,]*")


@dataclass(frozen=True, slots=True)
class Validators:
    """The validators of a representation (RFC 9110, section 8.8).

    Attributes:
        etag: the entity tag as sent, with its quotes and with `W/` if it is weak.
        modified: the time of the last change, in whole seconds since 1970.
        date_is_strong: whether `modified` is a strong validator: the second has passed.
    """

    etag: bytes
    modified: int
    date_is_strong: bool = True


@lru_cache(_KNOWN)
def parse_date(field: bytes) -> int | None:
    """Return the seconds since 1970 of an HTTP-date; None for an invalid one."""
    for pattern in _DATES:
        match = pattern.fullmatch(field)
        if match is not None:
            return _seconds(*(match[name].decode() for name in ("year", "month", "day", "hour", "minute", "second")))
    return None


def _seconds(year: str, month: str, day: str, hour: str, minute: str, second: str) -> int | None:
    full_year = int(year)
    if len(year) == 2:
        this_year = time.gmtime().tm_year
        full_year += this_year - this_year % 100
        if full_year > this_year + _FUTURE_YEARS:
            full_year -= 100
    days = calendar.monthrange(full_year, _MONTHS.index(month) + 1)[1] if full_year else 0
    if not 1 <= int(day) <= days:
        return None
    return calendar.timegm((full_year, _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second)))


@lru_cache(_KNOWN)
def _tags(field: bytes) -> frozenset[bytes]:
    """Return the entity tags of a list; none if it is malformed."""
    found: set[bytes] = set()
    # Not a single pattern for the whole list: it would take quadratic time for some malformed fields.
    separator = _SEPARATOR.match(field)
    while separator is not None and separator.end() < len(field):
        tag = _TAG.match(field, separator.end())
        if tag is None or (found and b"," not in separator[0]):
            return frozenset()
        found.add(tag[0])
        separator = _SEPARATOR.match(field, tag.end())
    return frozenset(found)


@lru_cache(_KNOWN)
def _opaque_tags(field: bytes) -> frozenset[bytes]:
    return frozenset(tag.removeprefix(b"W/") for tag in _tags(field))


def failed_precondition(fields: Mapping[bytes, bytes], validators: Validators) -> HTTPStatus | None:
    """Return the status that the preconditions of a GET or HEAD request lead to; None if the response is as without.

    The order is that of RFC 9110, section 13.2.2.

    Args:
        fields: the fields of the request, by name in lower case.
        validators: those of the selected representation.

    Returns:
        412, 304 or None.
    """
    match = fields.get(b"if-match")
    if match is not None:
        # Strong comparison: a weak tag matches nothing (RFC 9110, section 13.1.1).
        if match != b"*" and (validators.etag.startswith(b"W/") or validators.etag not in _tags(match)):
            return HTTPStatus.PRECONDITION_FAILED
    elif b"if-unmodified-since" in fields:
        limit = parse_date(fields[b"if-unmodified-since"])
        if limit is not None and validators.modified > limit:
            return HTTPStatus.PRECONDITION_FAILED
    none_match = fields.get(b"if-none-match")
    if none_match is not None:
        if none_match in (validators.etag, b"*") or validators.etag.removeprefix(b"W/") in _opaque_tags(none_match):
            return HTTPStatus.NOT_MODIFIED
    elif b"if-modified-since" in fields:
        since = parse_date(fields[b"if-modified-since"])
        if since is not None and validators.modified <= since:
            return HTTPStatus.NOT_MODIFIED
    return None


def range_applies(fields: Mapping[bytes, bytes], validators: Validators) -> bool:
    """Return whether If-Range permits a partial response (RFC 9110, section 13.1.5): true without the field."""
    condition = fields.get(b"if-range")
    if condition is None:
        return True
    if condition.endswith(b'"'):
        return condition == validators.etag and not condition.startswith(b"W/")
    return validators.date_is_strong and parse_date(condition) == validators.modified

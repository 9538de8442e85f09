"""Preconditions and their precedence (RFC 9110, section 13)."""

from __future__ import annotations

from tests.http_shapes.shape import Shape, get, kept

__all__ = ["CONDITIONAL_REQUESTS", "MODIFIED"]

#: The time of the last change of all files.
MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"
_EARLIER, _LATER = "Sun, 06 Nov 1994 08:49:36 GMT", "Sun, 06 Nov 1994 08:49:38 GMT"
_SINCE, _UNTIL = "If-Modified-Since: ", "If-Unmodified-Since: "
_NONE, _MATCH = "If-None-Match: ", "If-Match: "
_UNSENT = {"Content-Length": None, "Transfer-Encoding": None, "Content-Type": None}
_OTHER = '"other"'


def _shape(section: str, name: str, status: int, *fields: str, path: str = "/file.txt", method: str = "GET") -> Shape:
    """Return the shape of a request with preconditions; a 304 response has no content and no length (15.4.5)."""
    data = get(path, *fields, method=method)
    if status == 304:
        return kept(section, name, data, status, content=b"", fields=_UNSENT)
    return kept(section, name, data, status)


_DATES = (
    _shape("9110 13.1.3", "not modified since its date", 304, _SINCE + MODIFIED),
    _shape("9110 13.1.3", "not modified since a later date", 304, _SINCE + _LATER),
    _shape("9110 13.1.3", "modified since an earlier date", 200, _SINCE + _EARLIER),
    _shape("9110 13.1.3", "not modified, for HEAD", 304, _SINCE + MODIFIED, method="HEAD"),
    _shape("9110 13.1.3", "no date", 200, _SINCE + "yesterday"),
    _shape("9110 13.1.3", "an empty date", 200, _SINCE),
    _shape("9110 13.1.3", "a list of dates", 200, _SINCE + MODIFIED, _SINCE + MODIFIED),
    _shape("9110 13.1.3", "a date that does not exist", 200, _SINCE + "Sun, 31 Feb 2094 08:49:37 GMT"),
    _shape("9110 5.6.7", "the date of RFC 850", 304, _SINCE + "Sunday, 06-Nov-94 08:49:37 GMT"),
    _shape("9110 5.6.7", "the date of asctime", 304, _SINCE + "Sun Nov  6 08:49:37 1994"),
    _shape("9110 13.1.3", "a date without its day of the week", 200, _SINCE + "06 Nov 1994 08:49:37 GMT"),
    _shape("9110 13.1.3", "a number of seconds", 200, _SINCE + "4000000000"),
    _shape("9110 13.1.4", "unmodified since its date", 200, _UNTIL + MODIFIED),
    _shape("9110 13.1.4", "unmodified since a later date", 200, _UNTIL + _LATER),
    _shape("9110 13.1.4", "modified after a date", 412, _UNTIL + _EARLIER),
    _shape("9110 13.1.4", "modified after a date, for HEAD", 412, _UNTIL + _EARLIER, method="HEAD"),
    _shape("9110 13.1.4", "no date", 200, _UNTIL + "yesterday"),
    _shape("9110 13.1.3", "an index file", 304, _SINCE + MODIFIED, path="/folder/"),
)
_TAGS = (
    _shape("9110 13.1.2", "the same tag", 304, _NONE + "{etag}"),
    _shape("9110 13.1.2", "the same tag, for HEAD", 304, _NONE + "{etag}", method="HEAD"),
    _shape("9110 13.1.2", "another tag", 200, _NONE + _OTHER),
    _shape("9110 13.1.2", "any tag", 304, _NONE + "*"),
    _shape("9110 13.1.2", "the tag in a list", 304, _NONE + _OTHER + ", {etag}"),
    _shape("9110 13.1.2", "the tag at the start of a list", 304, _NONE + "{etag}, " + _OTHER),
    _shape("9110 13.1.2", "the tag in a second field", 304, _NONE + _OTHER, _NONE + "{etag}"),
    _shape("9110 13.1.2", "a list with empty elements", 304, _NONE + ", ,{etag},"),
    _shape("9110 8.8.3.2", "the tag as a weak one", 304, _NONE + "W/{etag}"),
    _shape("9110 8.8.3", "W in lower case", 200, _NONE + "w/{etag}"),
    _shape("9110 8.8.3", "a tag without quotes", 200, _NONE + "x"),
    _shape("9110 13.1.2", "an empty list", 200, _NONE),
    _shape("9110 8.8.3", "a comma in a tag", 304, _NONE + '"a,b", {etag}'),
    _shape("9110 8.8.3", "a blank in a tag makes the list invalid", 200, _NONE + '"a b", {etag}'),
    _shape("9110 13.1.1", "the same tag", 200, _MATCH + "{etag}"),
    _shape("9110 13.1.1", "another tag", 412, _MATCH + _OTHER),
    _shape("9110 13.1.1", "another tag, for HEAD", 412, _MATCH + _OTHER, method="HEAD"),
    _shape("9110 13.1.1", "any tag", 200, _MATCH + "*"),
    _shape("9110 13.1.1", "the tag in a list", 200, _MATCH + _OTHER + ", {etag}"),
    _shape("9110 13.1.1", "the tag as a weak one", 412, _MATCH + "W/{etag}"),
)
_PRECEDENCE = (
    _shape("9110 13.2.2", "the tag decides, not an earlier date", 304, _NONE + "{etag}", _SINCE + _EARLIER),
    _shape("9110 13.2.2", "another tag decides, not the same date", 200, _NONE + _OTHER, _SINCE + MODIFIED),
    _shape("9110 13.2.2", "If-Match decides, not If-Unmodified-Since", 200, _MATCH + "{etag}", _UNTIL + _EARLIER),
    _shape("9110 13.2.2", "If-Match fails before If-None-Match", 412, _MATCH + _OTHER, _NONE + "{etag}"),
    _shape("9110 13.2.2", "If-Match holds, and If-None-Match fails", 304, _MATCH + "{etag}", _NONE + "{etag}"),
    _shape("9110 13.2.2", "both dates", 304, _UNTIL + MODIFIED, _SINCE + MODIFIED),
    _shape("9110 13.2.1", "a missing file", 404, _MATCH + _OTHER, path="/missing"),
    _shape("9110 13.2.1", "a missing file and any tag", 404, _NONE + "*", path="/missing"),
    _shape("9110 13.2.1", "a redirect", 301, _NONE + "*", path="/folder"),
    _shape("9110 13.2.1", "another method", 405, _NONE + "{etag}", method="DELETE"),
)

CONDITIONAL_REQUESTS = (*_DATES, *_TAGS, *_PRECEDENCE)

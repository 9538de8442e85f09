"""Differences between svcd and lighttpd: the defaults of Debian 12."""

from __future__ import annotations

from tests.http_shapes.difference import Difference, Peer

__all__ = ["LIGHTTPD"]

LIGHTTPD = Peer(
    "1.4.69",
    (
        Difference(
            "lighttpd takes exactly one blank.",
            {
                "9112 3: two blanks after the method": "400 closed",
            },
        ),
        Difference(
            "lighttpd answers POST of a file with the file, does not read the body, and closes.",
            {
                "9112 6.2: a body, and another request": "200 (index.html) closed",
                "9112 6.2: a length of 0": "200 (index.html) 200 (file.txt) kept",
                "9110 8.6: leading zeros": "200 (index.html) closed",
                "9110 8.6: whitespace around the length": "200 (index.html) closed",
                "9112 6.1: chunks twice, in two fields": "200 (index.html) closed",
                "9112 7: the coding in upper case": "200 (index.html) closed",
                "9112 6.1: blanks around the coding": "200 (index.html) closed",
                "9112 6.1: a tab before the coding": "200 (index.html) closed",
                "9112 6.1: a tab after the coding": "200 (index.html) closed",
                "9112 7.1: a chunk": "200 (index.html) closed",
                "9112 7.1: two chunks": "200 (index.html) closed",
                "9112 7.1: no chunk but the last": "200 (index.html) closed",
                "9112 7.1: a size in lower case": "200 (index.html) closed",
                "9112 7.1: a size in upper case": "200 (index.html) closed",
                "9112 7.1: a size with zeros": "200 (index.html) closed",
                "9112 7.1: a chunk that looks like the end": "200 (index.html) closed",
                "9112 7.1: a chunk with a request": "200 (index.html) closed",
                "9112 7.1.1: an extension": "200 (index.html) closed",
                "9112 7.1.1: an extension with a value": "200 (index.html) closed",
                "9112 7.1.1: an extension with a quoted value": "200 (index.html) closed",
                "9112 7.1.2: a trailer": "200 (index.html) closed",
                "9110 6.5.1: a length as a trailer": "200 (index.html) closed",
                "9110 6.5.1: a transfer coding as a trailer": "200 (index.html) closed",
                "9110 6.5.1: close as a trailer": "200 (index.html) closed",
                "9112 7.1: an empty size": "200 (index.html) closed",
                "9112 7.1: a size that is no number": "200 (index.html) closed",
                "9112 7.1: a size with 0x": "200 (index.html) closed",
                "9112 7.1: a negative size": "200 (index.html) closed",
                "9112 7.1: a size with a plus sign": "200 (index.html) closed",
                "9112 7.1: a size with an underscore": "200 (index.html) closed",
                "9112 7.1: a blank before the size": "200 (index.html) closed",
                "9112 7.1: a blank after the size": "200 (index.html) closed",
                "9112 7.1: a tab after the size": "200 (index.html) closed",
                "9112 7.1: a comma after the size": "200 (index.html) closed",
                "9112 7.1: a size of 2^64": "200 (index.html) closed",
                "9112 7.1: a size of 2^64 + 5": "200 (index.html) closed",
                "9112 7.1: a size of 1,000 digits": "200 (index.html) closed",
                "9112 7.1: a chunk that is too short": "200 (index.html) closed",
                "9112 7.1: a chunk that is too long": "200 (index.html) closed",
                "9112 7.1: no line end after a chunk": "200 (index.html) closed",
                "9112 7.1: LF after a size": "200 (index.html) closed",
                "9112 7.1: CR after a size": "200 (index.html) closed",
                "9112 7.1: CR CR LF after a size": "200 (index.html) closed",
                "9112 7.1: LF after a chunk": "200 (index.html) closed",
                "9112 7.1: CR after a chunk": "200 (index.html) closed",
                "9112 7.1: any two bytes after a chunk": "200 (index.html) closed",
                "9112 7.1: LF after the last size": "200 (index.html) closed",
                "9112 7.1: LF after the body": "200 (index.html) closed",
                "9112 7.1.1: LF in an extension": "200 (index.html) closed",
                "9112 7.1.1: CR in an extension": "200 (index.html) closed",
                "9112 7.1.1: NUL in an extension": "200 (index.html) closed",
                "9112 7.1.1: LF in a quoted value": "200 (index.html) closed",
                "9112 7.1.2: a trailer without a colon": "200 (index.html) closed",
                "9112 7.1.2: a blank before the colon of a trailer": "200 (index.html) closed",
                "9112 7.1.2: LF after a trailer": "200 (index.html) closed",
                "6585 5: 101 trailers": "200 (index.html) closed",
                "9112 9.3.2: GET after a body": "200 (index.html) closed",
                "9112 9.3.2: an invalid request after a body": "200 (index.html) closed",
                "9110 10.1.1: an expectation of a body that nothing reads": "200 (index.html) closed",
                "9110 10.1.1: an expectation in upper case": "200 (index.html) closed",
                "9110 10.1.1: an expectation of chunks": "200 (index.html) closed",
            },
        ),
        Difference(
            "505 is lighttpd's status for any other version, also an invalid one.",
            {
                "9110 2.5: HTTP/3.0 is another major version": "505 closed",
                "9110 2.5: HTTP/1.2 is refused": "505 closed",
                "9112 2.3: a major version of two digits": "505 closed",
                "9112 2.3: no minor version": "505 closed",
                "9112 2.3: no digits": "505 closed",
                "9112 2.3: a comma in the version": "505 closed",
            },
        ),
        Difference(
            "lighttpd takes a line without a version for an invalid request line.",
            {
                "9112 3: no version, as in HTTP/0.9": "400 closed",
                "9112 3: no version, with fields": "400 closed",
            },
        ),
        Difference(
            "501 is lighttpd's status for all that begins with no method that it has, and for methods that files "
            "have not; after some of them it closes.",
            {
                "9112 3: a blank before the method": "501 closed",
                "9112 3: a tab before the method": "501 closed",
                "9112 3: a tab after the method": "501 closed",
                "9112 3: a vertical tab as whitespace": "501 closed",
                "9112 3: no blank after the method": "501 closed",
                "9112 2.2: a byte order mark": "501 closed",
                "9110 9.3.4: PUT": "501 closed",
                "9110 9.3.5: DELETE": "501 kept",
                "9110 9.3.8: TRACE": "501 kept",
                "5789 2: PATCH": "501 kept",
                "9110 9.1: a method of WebDAV": "501 kept",
                "9110 9.1: a method of UPnP": "501 closed",
                "9110 15.5.6: 405 without a body in between": "501 200 (index.html) kept",
                "9110 9.1: an unknown method": "501 closed",
                "9110 9.1: a method in lower case": "501 closed",
                "9110 9.1: a method with a letter too many": "501 closed",
                "9110 5.6.2: a method that is no token": "501 closed",
                "9110 5.6.2: a method with a quote": "501 closed",
                "9112 3.1: an empty method": "501 closed",
                "9112 9.6: nothing is answered after an error": "501 closed",
                "9110 13.2.1: another method": "501 kept",
                "9110 14.2: another method": "501 kept",
            },
        ),
        Difference(
            "lighttpd takes a blank for a part of the target.",
            {
                "9112 3: two blanks before the version": "404 kept",
                "9112 3: a blank in the target": "404 kept",
            },
        ),
        Difference(
            "lighttpd takes no empty line before a request.",
            {
                "9112 2.2: an empty line before the request": "400 closed",
            },
        ),
        Difference(
            "lighttpd takes LF as the end of a line in some places, as RFC 9112, section 2.2 allows.",
            {
                "9112 2.2: LF ends the head": "200 (index.html) kept",
            },
        ),
        Difference(
            "lighttpd waits after this error before it closes.",
            {
                "9112 2.2: LF CR ends a field": "400 waits",
            },
        ),
        Difference(
            "lighttpd speaks HTTP/2 to a client that begins with its preface, or asks for it by Upgrade.",
            {
                "9112 2.2: the preface of HTTP/2": "waits",
                "9110 7.8: an upgrade to HTTP/2 is ignored": "101 closed",
                "9110 7.8: an upgrade in HTTP/1.0": "400 closed",
            },
        ),
        Difference(
            "lighttpd answers POST of a file with the file.",
            {
                "9110 9.3.3: POST of a file": "200 (index.html) kept",
            },
        ),
        Difference(
            "lighttpd asks for a length of POST.",
            {
                "9112 6.3: no length, no body": "411 closed",
                "9110 8.6: an empty length": "411 closed",
                "9112 7: an empty coding": "411 closed",
                "9112 6.1: another name": "411 closed",
            },
        ),
        Difference(
            "lighttpd refuses bodies of GET and HEAD (method-get-body).",
            {
                "9112 6.2: a body of GET is read and dropped": "400 closed",
                "9112 6.2: a body of HEAD": "400 closed",
                "9112 6.2: a body that looks like a request": "400 closed",
                "9110 15.5.14: a body of 2 MB": "400 closed",
                "9112 7.1: chunks of GET are read and dropped": "400 closed",
            },
        ),
        Difference(
            "lighttpd has no length in redirects of HEAD.",
            {
                "9110 9.3.2: HEAD of a directory": "301 (no length) kept",
            },
        ),
        Difference(
            "lighttpd answers OPTIONS by 200, and does not read its body.",
            {
                "9110 9.3.7: OPTIONS of a file": "200 (no content) kept",
                "9110 9.3.7: OPTIONS of the server": "200 (no content) kept",
                "9110 9.3.7: OPTIONS with a body": "200 (no content) closed",
            },
        ),
        Difference(
            "lighttpd refuses CONNECT.",
            {
                "9110 9.3.6: CONNECT": "400 closed",
            },
        ),
        Difference(
            "lighttpd wants absolute targets to agree with Host, and to have a path.",
            {
                "9112 3.2.2: absolute form with a port": "400 closed",
                "9112 3.2.2: absolute form overrides Host": "400 closed",
                "9112 3.2.2: absolute form without a path": "400 closed",
                "9112 3.2.2: absolute form with a query and no path": "400 closed",
                "9112 3.2: absolute form without Host": "200 (file.txt) kept",
            },
        ),
        Difference(
            "lighttpd closes after 400; svcd keeps the connection where the framing is sound.",
            {
                "9112 3.2.4: asterisk form for GET": "400 closed",
                "9110 4.2.1: absolute form with an empty host": "400 closed",
                "9110 4.2.4: absolute form with userinfo": "400 closed",
                "9112 3.2.2: another scheme": "400 closed",
                "3986 2.1: an escaped NUL": "400 closed",
                "3986 2.1: an escaped line end": "400 closed",
                "3986 2.1: escaped bytes that are no UTF-8": "400 closed",
                "3986 2.1: an overlong slash": "400 closed",
            },
        ),
        Difference(
            "403 is lighttpd's status for a directory without an index file; svcd does not tell whether there is "
            "a directory.",
            {
                "9110 15.5.5: a directory without an index file": "403 kept",
            },
        ),
        Difference(
            "lighttpd takes what follows the name of a file for PATH_INFO.",
            {
                "9110 15.5.5: a file with a slash after it": "200 (file.txt) kept",
                "9110 15.5.5: a file as a directory": "200 (file.txt) kept",
            },
        ),
        Difference(
            "lighttpd is lenient with escapes, decodes a path before it splits it, and removes dot segments (url- "
            "normalize).",
            {
                "3986 2.1: one hexadecimal digit": "404 kept",
                "3986 2.1: no hexadecimal digits": "404 kept",
                "3986 2.1: a percent sign at the end": "404 kept",
                "3986 2.1: an escaped slash": "200 (folder/index.html) kept",
                "3986 5.2.4: two dots, which a client removes": "200 (file.txt) kept",
                "3986 5.2.4: two dots that leave the root": "200 (file.txt) kept",
                "3986 5.2.4: escaped dots that leave the root": "200 (file.txt) kept",
                "3986 5.2.4: half-escaped dots": "200 (file.txt) kept",
                "3986 3.3: a backslash": "404 kept",
                "3986 3.3: an escaped backslash": "404 kept",
            },
        ),
        Difference(
            "lighttpd serves hidden files.",
            {
                "3986 3.3: a hidden file": "200 (.hidden) kept",
            },
        ),
        Difference(
            "lighttpd has no limit for the target alone.",
            {
                "9110 15.5.15: a target of 8,193 bytes": "431 closed",
                "9110 15.5.15: a target of 100,000 bytes": "431 closed",
            },
        ),
        Difference(
            "lighttpd takes the same Host twice, and no empty or escaped one.",
            {
                "9112 3.2: the same Host field twice": "200 (index.html) kept",
                "9110 7.2: an empty Host": "400 closed",
                "3986 3.2.2: an escaped host": "400 closed",
            },
        ),
        Difference(
            "lighttpd unfolds lines, as RFC 9112, section 5.2 allows.",
            {
                "9112 5.2: a folded line": "200 (index.html) kept",
                "9112 5.2: a line folded by a tab": "200 (index.html) kept",
                "9112 5.2: a folded line that is empty": "200 (index.html) kept",
                "9112 5.2: a folded Transfer-Encoding": "501 closed",
                "9112 7.1.2: a folded trailer": "200 (index.html) closed",
            },
        ),
        Difference(
            "lighttpd has no limit of the number of fields.",
            {
                "6585 5: 101 fields": "200 (index.html) kept",
            },
        ),
        Difference(
            "501 is lighttpd's status for all other transfer codings.",
            {
                "9112 6.1: a length and an unknown coding": "501 closed",
                "9112 6.1: chunks twice": "501 closed",
                "9112 6.3: chunks are not the last coding": "501 closed",
                "9112 6.3: another coding alone": "501 closed",
                "9112 7: identity, which is no coding any more": "501 closed",
                "9112 7: identity and a length": "501 closed",
                "9112 7: a name that ends with chunked": "501 closed",
                "9112 7: a name that begins with chunked": "501 closed",
                "9112 7: a quoted coding": "501 closed",
                "9112 7: chunks with a parameter": "501 closed",
                "9112 7: two words": "501 closed",
                "9112 7: a byte above ASCII in the coding": "501 closed",
            },
        ),
        Difference(
            "lighttpd does not heed Proxy-Connection.",
            {
                "9112 c.2.2: Proxy-Connection: close": "200 (index.html) kept",
            },
        ),
        Difference(
            "lighttpd has no If-Match and no If-Unmodified-Since.",
            {
                "9110 13.1.4: modified after a date": "200 (file.txt) kept",
                "9110 13.1.4: modified after a date, for HEAD": "200 (26, no content) kept",
                "9110 13.1.1: another tag": "200 (file.txt) kept",
                "9110 13.1.1: another tag, for HEAD": "200 (26, no content) kept",
                "9110 13.1.1: the tag as a weak one": "200 (file.txt) kept",
                "9110 13.2.2: If-Match fails before If-None-Match": "304 kept",
                "9110 13.2.2: 412 before a range": "206 (abcde) kept",
            },
        ),
        Difference(
            "lighttpd takes the last field, and dates that do not exist.",
            {
                "9110 13.1.3: a list of dates": "304 kept",
                "9110 13.1.3: a date that does not exist": "304 kept",
                "9110 13.1.2: the tag in a second field": "200 (file.txt) kept",
            },
        ),
        Difference(
            "lighttpd is lenient with tags.",
            {
                "9110 8.8.3: a blank in a tag makes the list invalid": "304 kept",
            },
        ),
        Difference(
            "lighttpd refuses invalid ranges by 416 or takes the valid ones; RFC 9110, section 14.2 allows to "
            "ignore the field.",
            {
                "9110 14.1.2: an end after all files": "416 kept",
                "9110 14.1.1: no ranges": "416 kept",
                "9110 14.1.1: no numbers": "416 kept",
                "9110 14.1.1: no number": "416 kept",
                "9110 14.1.1: an end before the start": "416 kept",
                "9110 14.1.1: an invalid range after a valid one": "206 (abcde) kept",
                "9110 14.1.1: two hyphens": "416 kept",
                "9110 14.1.1: a negative start": "416 kept",
                "9110 14.1.1: a plus sign": "206 (abcde) kept",
                "9110 14.1.1: a hexadecimal number": "416 kept",
                "9110 14.1.1: a blank in a range": "206 (abcde) kept",
                "9110 14.1.1: an underscore": "416 kept",
                "9110 14.2: digits above ASCII": "416 kept",
                "9110 14.2: two fields": "206 (abcde) kept",
            },
        ),
        Difference(
            "lighttpd joins ranges that are near to each other.",
            {
                "9110 14.2: more overlapping ranges than are useful": "206 (file.txt) kept",
                "9110 14.6: two ranges": "206 (abcdefghijklmno) kept",
                "9110 14.6: two ranges in reverse order": "206 (file.txt) kept",
                "9110 14.6: blanks between ranges": "206 (abcdefghijklmno) kept",
            },
        ),
        Difference(
            "lighttpd sends an empty file for any range.",
            {
                "9110 15.5.17: a range of an empty file": "200 (no content) kept",
            },
        ),
        Difference(
            "404 is lighttpd's status for a bad escape.",
            {
                "9112 9.3.2: five requests, of which some fail": "200 (index.html) 404 404 301 200 (index.html) kept",
            },
        ),
    ),
)

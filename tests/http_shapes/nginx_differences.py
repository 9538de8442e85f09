"""Differences between svcd and nginx: the defaults of Debian 12."""

from __future__ import annotations

from tests.http_shapes.difference import Difference, Peer

__all__ = ["NGINX"]

NGINX = Peer(
    "1.22.1",
    (
        Difference(
            "The minor version does not matter to nginx; 505 for HTTP/3.0, and 400 for HTTP/0.9.",
            {
                "9110 2.5: HTTP/3.0 is another major version": "505 closed",
                "9110 2.5: HTTP/0.9 is another major version": "400 closed",
                "9110 2.5: HTTP/1.2 is refused": "200 (index.html) kept",
                "9112 2.3: a minor version of two digits": "200 (index.html) kept",
            },
        ),
        Difference(
            "nginx answers HTTP/0.9, with no head.",
            {
                "9112 3: no version, as in HTTP/0.9": "closed",
                "9112 3: no version, with fields": "closed",
                "9112 2.2: LF in the target": "closed",
            },
        ),
        Difference(
            "nginx takes LF as the end of a line, as RFC 9112, section 2.2 allows, and a blank or CR before it.",
            {
                "9112 3: a blank after the version": "200 (index.html) kept",
                "9112 2.2: LF ends the request line": "200 (index.html) kept",
                "9112 2.2: LF ends a field": "200 (index.html) kept",
                "9112 2.2: LF ends the head": "200 (index.html) kept",
                "9112 2.2: LF ends all lines": "200 (index.html) kept",
                "9112 2.2: CR CR LF ends a field": "200 (index.html) kept",
                "9110 5.5: LF in the value": "200 (index.html) kept",
                "9110 5.5: CR at the end of the value": "200 (index.html) kept",
            },
        ),
        Difference(
            "nginx ignores fields with invalid names (ignore_invalid_headers); svcd refuses them, as RFC 9112, "
            "section 5 asks.",
            {
                "9112 5: no colon": "200 (index.html) kept",
                "9110 5.6.2: parentheses in the name": "200 (index.html) kept",
                "9110 5.6.2: an at sign in the name": "200 (index.html) kept",
                "9110 5.6.2: a slash in the name": "200 (index.html) kept",
                "9110 5.6.2: a quote in the name": "200 (index.html) kept",
                "9110 5.6.2: brackets in the name": "200 (index.html) kept",
                "9110 5.6.2: a byte above ASCII in the name": "200 (index.html) kept",
            },
        ),
        Difference(
            "nginx passes control characters in values on.",
            {
                "9110 5.5: a control character in the value": "200 (index.html) kept",
                "9110 5.5: DEL in the value": "200 (index.html) kept",
            },
        ),
        Difference(
            "nginx hardly looks at the host; svcd checks its grammar (RFC 3986, section 3.2.2).",
            {
                "3986 3.2.2: an IPv6 address without its bracket": "200 (index.html) kept",
                "3986 3.2.2: an invalid IPv6 address": "200 (index.html) kept",
                "9110 7.2: a port that is no number": "200 (index.html) kept",
                "9110 7.2: a negative port": "200 (index.html) kept",
                "9110 7.2: userinfo": "200 (index.html) kept",
                "9110 7.2: an at sign": "200 (index.html) kept",
                "9110 7.2: a backslash in the host": "200 (index.html) kept",
                "9110 7.2: quotes": "200 (index.html) kept",
                "9110 7.2: a byte above ASCII": "200 (index.html) kept",
            },
        ),
        Difference(
            "nginx takes no empty host, and no tab as whitespace.",
            {
                "9110 7.2: an empty Host": "400 closed",
                "9110 7.2: whitespace around the value": "400 closed",
                "9110 8.6: whitespace around the length": "400 closed",
                "9112 6.1: a tab before the coding": "501 closed",
            },
        ),
        Difference(
            "nginx does not know the registered methods, and closes after TRACE and CONNECT.",
            {
                "9110 9.3.6: CONNECT": "400 closed",
                "9110 9.3.8: TRACE": "405 closed",
                "9110 9.1: an unknown method": "405 kept",
                "9110 9.1: a method with a letter too many": "405 kept",
            },
        ),
        Difference(
            "nginx closes after 400 and 412; svcd keeps the connection where the framing is sound.",
            {
                "9112 3.2.4: asterisk form for GET": "400 closed",
                "9110 4.2.1: absolute form with an empty host": "400 closed",
                "9110 4.2.4: absolute form with userinfo": "400 closed",
                "3986 2.1: one hexadecimal digit": "400 closed",
                "3986 2.1: no hexadecimal digits": "400 closed",
                "3986 2.1: a percent sign at the end": "400 closed",
                "3986 2.1: an escaped NUL": "400 closed",
                "3986 5.2.4: two dots that leave the root": "400 closed",
                "3986 5.2.4: escaped dots that leave the root": "400 closed",
                "3986 5.2.4: half-escaped dots": "400 closed",
                "9110 13.1.4: modified after a date": "412 closed",
                "9110 13.1.4: modified after a date, for HEAD": "412 closed",
                "9110 13.1.1: another tag": "412 closed",
                "9110 13.1.1: another tag, for HEAD": "412 closed",
                "9110 13.1.1: the tag as a weak one": "412 closed",
                "9110 13.2.2: If-Match fails before If-None-Match": "412 closed",
                "9110 13.2.2: 412 before a range": "412 closed",
            },
        ),
        Difference(
            "nginx does not look at the scheme.",
            {
                "9112 3.2.2: another scheme": "200 (file.txt) kept",
            },
        ),
        Difference(
            "403 is nginx's status for a directory that has no index file; svcd does not tell whether there is a "
            "directory.",
            {
                "9110 15.5.5: a directory without an index file": "403 kept",
            },
        ),
        Difference(
            "nginx decodes a path before it splits it, and removes dot segments; svcd refuses what a client "
            "should have removed, and paths that no file has: control characters, backslashes, bytes that are no "
            "UTF-8.",
            {
                "3986 2.1: an escaped line end": "404 kept",
                "3986 2.1: an escaped slash": "200 (folder/index.html) kept",
                "3986 2.1: escaped bytes that are no UTF-8": "404 kept",
                "3986 2.1: an overlong slash": "404 kept",
                "3986 5.2.4: two dots, which a client removes": "200 (file.txt) kept",
                "3986 3.3: a backslash": "404 kept",
                "3986 3.3: an escaped backslash": "404 kept",
            },
        ),
        Difference(
            "nginx serves hidden files.",
            {
                "3986 3.3: a hidden file": "200 (.hidden) kept",
            },
        ),
        Difference(
            "400 is nginx's status for a head that is too large, and it has no limit of the number of fields.",
            {
                "6585 5: 101 fields": "200 (index.html) kept",
                "6585 5: a value of 40,000 bytes": "400 closed",
                "6585 5: a name of 40,000 bytes": "400 closed",
                "6585 5: a head of 40,000 bytes": "400 closed",
                "6585 5: a value that does not end": "400 closed",
                "6585 5: fields that do not end": "400 closed",
            },
        ),
        Difference(
            "501 is nginx's status for all other transfer codings.",
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
                "9112 7: an empty coding": "501 closed",
                "9112 7: a vertical tab before the coding": "501 closed",
                "9112 7: a byte above ASCII in the coding": "501 closed",
                "9112 6.1: a tab after the coding": "501 closed",
            },
        ),
        Difference(
            "nginx answers 405 before it reads the body, and is lenient with chunks, extensions and trailers.",
            {
                "9110 6.5.1: a length as a trailer": "405 200 (file.txt) kept",
                "9110 6.5.1: a transfer coding as a trailer": "405 200 (file.txt) kept",
                "9110 6.5.1: close as a trailer": "405 200 (file.txt) kept",
                "9112 7.1: an empty size": "405 closed",
                "9112 7.1: a size that is no number": "405 closed",
                "9112 7.1: a size with 0x": "405 closed",
                "9112 7.1: a negative size": "405 closed",
                "9112 7.1: a size with a plus sign": "405 closed",
                "9112 7.1: a size with an underscore": "405 closed",
                "9112 7.1: a blank before the size": "405 closed",
                "9112 7.1: a blank after the size": "405 200 (file.txt) kept",
                "9112 7.1: a tab after the size": "405 200 (file.txt) kept",
                "9112 7.1: a comma after the size": "405 closed",
                "9112 7.1: a size of 2^64": "405 closed",
                "9112 7.1: a size of 2^64 + 5": "405 closed",
                "9112 7.1: a size of 1,000 digits": "405 closed",
                "9112 7.1: a chunk that is too short": "405 200 (file.txt) kept",
                "9112 7.1: a chunk that is too long": "405 closed",
                "9112 7.1: no line end after a chunk": "405 closed",
                "9112 7.1: LF after a size": "405 200 (file.txt) kept",
                "9112 7.1: CR after a size": "405 closed",
                "9112 7.1: CR CR LF after a size": "405 closed",
                "9112 7.1: LF after a chunk": "405 200 (file.txt) kept",
                "9112 7.1: CR after a chunk": "405 closed",
                "9112 7.1: any two bytes after a chunk": "405 closed",
                "9112 7.1: LF after the last size": "405 200 (file.txt) kept",
                "9112 7.1: LF after the body": "405 200 (file.txt) kept",
                "9112 7.1.1: LF in an extension": "405 closed",
                "9112 7.1.1: CR in an extension": "405 closed",
                "9112 7.1.1: NUL in an extension": "405 200 (file.txt) kept",
                "9112 7.1.1: LF in a quoted value": "405 closed",
                "9112 7.1.2: a trailer without a colon": "405 200 (file.txt) kept",
                "9112 7.1.2: a blank before the colon of a trailer": "405 200 (file.txt) kept",
                "9112 7.1.2: LF after a trailer": "405 200 (file.txt) kept",
                "9112 7.1.2: a folded trailer": "405 200 (file.txt) kept",
                "6585 5: 101 trailers": "405 kept",
            },
        ),
        Difference(
            "nginx looks for the word in the value of Connection, not for an element of the list; it does not "
            "heed Proxy-Connection.",
            {
                "9110 7.6.1: a name that ends with close": "200 (file.txt) closed",
                "9110 7.6.1: a name that begins with close": "200 (file.txt) closed",
                "9112 c.2.2: Proxy-Connection: close": "200 (index.html) kept",
            },
        ),
        Difference(
            "nginx sends 100 also where no body follows; after 405 it takes what follows for the body.",
            {
                "9110 10.1.1: an expectation without a body": "100 200 (index.html) kept",
                "9110 10.1.1: an expectation of a body that nothing reads": "405 400 closed",
                "9110 10.1.1: an expectation in upper case": "405 400 closed",
            },
        ),
        Difference(
            "nginx compares the date as text (if_modified_since exact) and does both conditions, also where the "
            "tag decides.",
            {
                "9110 13.1.3: not modified since a later date": "200 (file.txt) kept",
                "9110 13.1.3: a list of dates": "400 closed",
                "9110 13.1.4: no date": "412 closed",
                "9110 13.2.2: the tag decides, not an earlier date": "200 (file.txt) kept",
                "9110 13.2.2: If-Match decides, not If-Unmodified-Since": "412 closed",
            },
        ),
        Difference(
            "nginx takes no second field of these names.",
            {
                "9110 13.1.2: the tag in a second field": "400 closed",
            },
        ),
        Difference(
            "nginx has no OPTIONS for files.",
            {
                "9110 9.3.7: OPTIONS of a file": "405 kept",
                "9110 9.3.7: OPTIONS of the server": "400 closed",
                "9110 9.3.7: OPTIONS with a body": "405 200 (index.html) kept",
            },
        ),
        Difference(
            "nginx is lenient with tags.",
            {
                "9110 8.8.3: a blank in a tag makes the list invalid": "304 kept",
            },
        ),
        Difference(
            "nginx refuses invalid ranges by 416 or takes the valid ones; RFC 9110, section 14.2 allows to ignore "
            "the field.",
            {
                "9110 14.1.2: an end after all files": "416 kept",
                "9110 14.2: whitespace around the value": "200 (file.txt) kept",
                "9110 5.6.1: empty elements of the list": "416 kept",
                "9110 14.1.1: no numbers": "416 kept",
                "9110 14.1.1: no number": "416 kept",
                "9110 14.1.1: an end before the start": "416 kept",
                "9110 14.1.1: an invalid range after a valid one": "206 (abcde) kept",
                "9110 14.1.1: two hyphens": "416 kept",
                "9110 14.1.1: a negative start": "416 kept",
                "9110 14.1.1: a plus sign": "416 kept",
                "9110 14.1.1: a hexadecimal number": "416 kept",
                "9110 14.1.1: a blank in a range": "206 (abcde) kept",
                "9110 14.1.1: an underscore": "416 kept",
                "9110 14.2: digits above ASCII": "416 kept",
                "9110 14.2: two fields": "206 (abcde) kept",
            },
        ),
        Difference(
            "nginx sends ranges for HEAD as well; RFC 9110, section 14.2 defines them for GET only.",
            {
                "9110 14.2: HEAD has no ranges": "206 (5, no content) kept",
            },
        ),
        Difference(
            "nginx sends an empty file for any range.",
            {
                "9110 15.5.17: a range of an empty file": "200 (no content) kept",
            },
        ),
        Difference(
            "nginx closes after 400, so nothing is answered after it.",
            {
                "9112 9.3.2: five requests, of which some fail": "200 (index.html) 404 400 closed",
            },
        ),
    ),
)

"""Heads that are not HTTP/1.1, or may be read in two ways, and odd ones that are in order.

`line` is the request line, `fields` what follows `Host: x`; names say what is odd. Every refused
head ends the connection, because nobody can tell where the next message begins.
"""

from __future__ import annotations

HOST = b"Host: x\r\n"


def with_field(field: bytes) -> bytes:
    """A request whose head holds `field`, in full, line ending included."""
    return b"GET /v1/models HTTP/1.1\r\n" + HOST + field + b"\r\n"


def with_line(line: bytes, *, host: bytes = HOST) -> bytes:
    """A request with this request line, line ending included."""
    return line + host + b"\r\n"


REFUSED: dict[str, bytes] = {
    # line endings
    "bare LF everywhere": b"GET /v1/models HTTP/1.1\nHost: x\n\n",
    "bare LF after the request line": with_line(b"GET /v1/models HTTP/1.1\n"),
    "bare LF after a field": with_field(b"A: b\n"),
    "bare LF at the end of the head": b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\n",
    "bare CR after the request line": with_line(b"GET /v1/models HTTP/1.1\r"),
    "bare CR in a field": with_field(b"A: b\rc\r\n"),
    "bare CR before CRLF": with_field(b"A: b\r\r\n"),
    "LF CR": with_field(b"A: b\n\r"),
    "LF in a field": with_field(b"A: b\nC: d\r\n"),
    # folding and space
    "a folded field": with_field(b"A: b\r\n c\r\n"),
    "a field folded by a tab": with_field(b"A: b\r\n\tc\r\n"),
    "a folded field without a value": with_field(b"A:\r\n b\r\n"),
    "a space before the first field": b"GET /v1/models HTTP/1.1\r\n " + HOST + b"\r\n",
    "a space before the colon": with_field(b"A : b\r\n"),
    "a tab before the colon": with_field(b"A\t: b\r\n"),
    "a space in a name": with_field(b"A B: c\r\n"),
    # names and values
    "an empty name": with_field(b": b\r\n"),
    "a line without a colon": with_field(b"nocolon\r\n"),
    "NUL in a name": with_field(b"A\x00: b\r\n"),
    "NUL in a value": with_field(b"A: b\x00c\r\n"),
    "a control character in a value": with_field(b"A: b\x01c\r\n"),
    "a vertical tab in a value": with_field(b"A: b\x0bc\r\n"),
    "DEL in a value": with_field(b"A: b\x7fc\r\n"),
    "a letter beyond ASCII in a name": with_field(b"\xc3\xa9: b\r\n"),
    "a bracket in a name": with_field(b"A[0]: b\r\n"),
    "a quote in a name": with_field(b'"A": b\r\n'),
    # the request line
    "NUL in the target": with_line(b"GET /v1/\x00models HTTP/1.1\r\n"),
    "a letter beyond ASCII in the target": with_line(b"GET /v1/\xc3\xa9 HTTP/1.1\r\n"),
    "a space in the target": with_line(b"GET /v1/a b HTTP/1.1\r\n"),
    "a tab in the target": with_line(b"GET /v1/a\tb HTTP/1.1\r\n"),
    "a target that is a name": with_line(b"GET models HTTP/1.1\r\n"),
    "a target that is a query": with_line(b"GET ?x HTTP/1.1\r\n"),
    "no target": with_line(b"GET HTTP/1.1\r\n"),
    "a tab after the method": with_line(b"GET\t/v1/models HTTP/1.1\r\n"),
    "a space after the version": with_line(b"GET /v1/models HTTP/1.1 \r\n"),
    "a space before the method": with_line(b" GET /v1/models HTTP/1.1\r\n"),
    "a method in lower case": with_line(b"get /v1/models HTTP/1.1\r\n"),
    "a method in mixed case": with_line(b"Get /v1/models HTTP/1.1\r\n"),
    "an unknown method": with_line(b"FETCH /v1/models HTTP/1.1\r\n"),
    "a method beyond all bounds": with_line(b"G" * 1000 + b" /v1/models HTTP/1.1\r\n"),
    # Host
    "no Host": with_line(b"GET /v1/models HTTP/1.1\r\n", host=b""),
    "two Hosts": with_line(b"GET /v1/models HTTP/1.1\r\n", host=HOST + b"Host: y\r\n"),
    "the same Host twice": with_line(b"GET /v1/models HTTP/1.1\r\n", host=HOST * 2),
    "two Hosts spelt differently": with_line(
        b"GET /v1/models HTTP/1.1\r\n", host=HOST + b"hOsT: y\r\n"
    ),
    "a Host with a space": with_line(b"GET /v1/models HTTP/1.1\r\n", host=b"Host: x y\r\n"),
    "a Host with a path": with_line(b"GET /v1/models HTTP/1.1\r\n", host=b"Host: x/y\r\n"),
    "a Host with a user": with_line(b"GET /v1/models HTTP/1.1\r\n", host=b"Host: a@b\r\n"),
    "a Host beyond ASCII": with_line(b"GET /v1/models HTTP/1.1\r\n", host=b"Host: \xc3\xa9\r\n"),
    "two Hosts in HTTP/1.0": with_line(b"GET /v1/models HTTP/1.0\r\n", host=HOST * 2),
    # versions and other protocols
    "HTTP/0.9 with its name": with_line(b"GET /v1/models HTTP/0.9\r\n"),
    "HTTP/1.2": with_line(b"GET /v1/models HTTP/1.2\r\n"),
    "HTTP/1.10": with_line(b"GET /v1/models HTTP/1.10\r\n"),
    "HTTP/2.0": with_line(b"GET /v1/models HTTP/2.0\r\n"),
    "HTTP/3": with_line(b"GET /v1/models HTTP/3\r\n"),
    "a version in lower case": with_line(b"GET /v1/models http/1.1\r\n"),
    "HTTPS as a version": with_line(b"GET /v1/models HTTPS/1.1\r\n"),
    "RTSP": with_line(b"DESCRIBE rtsp://x/y RTSP/2.0\r\n"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS client hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "an SSH banner": b"SSH-2.0-OpenSSH_9.9\r\n",
    "an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "binary noise": b"\xff\xfe\xfd\x00\x01\x02",
    "the PROXY protocol": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
}
"""Each is answered 400 and the connection closed."""

ACCEPTED: dict[str, tuple[bytes, int]] = {
    "an empty Host": (with_line(b"GET /v1/models HTTP/1.1\r\n", host=b"Host:\r\n"), 200),
    "a Host with a port": (with_line(b"GET /v1/models HTTP/1.1\r\n", host=b"Host: x:80\r\n"), 200),
    "an IPv6 Host": (with_line(b"GET /v1/models HTTP/1.1\r\n", host=b"Host: [::1]:80\r\n"), 200),
    "no Host in HTTP/1.0": (with_line(b"GET /v1/models HTTP/1.0\r\n", host=b""), 200),
    "an empty line before": (b"\r\n\r\n" + with_line(b"GET /v1/models HTTP/1.1\r\n"), 200),
    "a value beyond ASCII": (with_field(b"A: \xc3\xa9\xff\r\n"), 200),
    "an empty value": (with_field(b"A:\r\n"), 200),
    "a value amid tabs and spaces": (with_field(b"A: \t b \t \r\n"), 200),
    "every letter a name may have": (with_field(b"!#$%&'*+-.^_`|~09azAZ: b\r\n"), 200),
    "the absolute form": (with_line(b"GET http://y/v1/models HTTP/1.1\r\n"), 200),
    "the absolute form in capitals": (with_line(b"GET HTTPS://Y:1/v1/models?a HTTP/1.1\r\n"), 200),
    "the absolute form without a path": (with_line(b"GET http://y HTTP/1.1\r\n"), 404),
    "the absolute form with only a query": (with_line(b"GET http://y?a HTTP/1.1\r\n"), 404),
    "another scheme": (with_line(b"GET ftp://y/v1/models HTTP/1.1\r\n"), 404),
    "a fragment": (with_line(b"GET /v1/models#a HTTP/1.1\r\n"), 200),
    "two slashes": (with_line(b"GET //v1//models HTTP/1.1\r\n"), 200),
    "OPTIONS *": (with_line(b"OPTIONS * HTTP/1.1\r\n"), 404),
    "GET *": (with_line(b"GET * HTTP/1.1\r\n"), 404),
    "TRACE": (with_line(b"TRACE /v1/models HTTP/1.1\r\n"), 405),
    "DELETE": (with_line(b"DELETE /v1/models HTTP/1.1\r\n"), 405),
    "a method of WebDAV": (with_line(b"PROPFIND /v1/models HTTP/1.1\r\n"), 405),
}
"""Each is one request, with this status; the connection goes on unless HTTP/1.0 ends it."""

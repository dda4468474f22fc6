"""Requests whose end two readers may see at different places, after the published suites
(Linhart et al. 2005, Kettle 2019 and 2022, the framing rules of RFC 9112 §6 and §7).

Each carries a whole request for `SMUGGLED` where one of the readers would find it. Served or not,
that request must never be seen.
"""

from __future__ import annotations

SMUGGLED = "/v1/smuggled"
_HIDDEN = f"GET {SMUGGLED} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
_CHUNKED = b"Transfer-Encoding: chunked\r\n"


def _after_the_last_chunk(*fields: bytes) -> bytes:
    """Framing fields, then a chunked body with the hidden request behind its end."""
    return b"\r\n".join([*fields, b"", b""]) + b"5\r\nhello\r\n0\r\n\r\n" + _HIDDEN


def _in_a_chunk(*fields: bytes) -> bytes:
    """Framing fields, then one chunk that holds the hidden request."""
    size = b"%x\r\n" % len(_HIDDEN)
    return b"\r\n".join([*fields, b"", b""]) + size + _HIDDEN + b"\r\n0\r\n\r\n"


def _by_length(*fields: bytes) -> bytes:
    """Framing fields, then five bytes and the hidden request."""
    return b"\r\n".join([*fields, b"", b""]) + b"hello" + _HIDDEN


_CODINGS: dict[str, bytes] = {
    "another name": b"Transfer-Encoding: xchunked",
    "a suffix": b"Transfer-Encoding: chunkedx",
    "quotes": b'Transfer-Encoding: "chunked"',
    "single quotes": b"Transfer-Encoding: 'chunked'",
    "a parameter": b"Transfer-Encoding: chunked;q=1",
    "nothing": b"Transfer-Encoding:",
    "a space before the colon": b"Transfer-Encoding : chunked",
    "a tab before the colon": b"Transfer-Encoding\t: chunked",
    "LF before the colon": b"Transfer-Encoding\n: chunked",
    "NUL before the colon": b"Transfer-Encoding\x00: chunked",
    "a vertical tab before the value": b"Transfer-Encoding:\x0bchunked",
    "a form feed before the value": b"Transfer-Encoding:\x0cchunked",
    "CR before the value": b"Transfer-Encoding:\rchunked",
    "LF before the value": b"Transfer-Encoding:\nchunked",
    "NUL before the value": b"Transfer-Encoding: \x00chunked",
    "a non-breaking space before the value": b"Transfer-Encoding: \xa0chunked",
    "a vertical tab behind the value": b"Transfer-Encoding: chunked\x0b",
    "NUL behind the value": b"Transfer-Encoding: chunked\x00",
    "a space before the name": b" Transfer-Encoding: chunked",
    "a field folded before": b"X: y\r\n Transfer-Encoding: chunked",
    "a folded value": b"Transfer-Encoding:\r\n chunked",
    "LF before the name": b"X: y\nTransfer-Encoding: chunked",
    "CR before the name": b"X: y\rTransfer-Encoding: chunked",
    "identity": b"Transfer-Encoding: identity",
    "chunked, identity": b"Transfer-Encoding: chunked, identity",
    "identity, chunked": b"Transfer-Encoding: identity, chunked",
    "gzip, chunked": b"Transfer-Encoding: gzip, chunked",
    "chunked, gzip": b"Transfer-Encoding: chunked, gzip",
    "chunked, chunked": b"Transfer-Encoding: chunked, chunked",
    "a comma behind": b"Transfer-Encoding: chunked,",
    "a comma before": b"Transfer-Encoding: ,chunked",
    "x before": b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
    "x behind": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
    "x behind, in lower case": b"Transfer-Encoding: chunked\r\ntransfer-encoding: x",
    "identity behind": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "nothing before": b"Transfer-Encoding:\r\nTransfer-Encoding: chunked",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "a letter that looks alike": "Transfer-Encoding: chunKed".replace("K", "\u212a").encode(),
    "a long s": "Tran\u017ffer-Encoding: chunked".encode(),
}

_LENGTHS: dict[str, bytes] = {
    "a plus": b"Content-Length: +5",
    "a minus": b"Content-Length: -5",
    "minus zero": b"Content-Length: -0",
    "a list": b"Content-Length: 5, 5",
    "a list of two numbers": b"Content-Length: 5, 6",
    "hexadecimal": b"Content-Length: 0x5",
    "an exponent": b"Content-Length: 5e0",
    "a fraction": b"Content-Length: 5.0",
    "an underscore": b"Content-Length: 0_5",
    "a space within": b"Content-Length: 5 5",
    "nothing": b"Content-Length:",
    "letters": b"Content-Length: five",
    "quotes": b'Content-Length: "5"',
    "a vertical tab behind": b"Content-Length: 5\x0b",
    "NUL behind": b"Content-Length: 5\x00",
    "a digit of another script": "Content-Length: \u0665".encode(),
    "a superscript": "Content-Length: \u00b2".encode(),
    "a space before the colon": b"Content-Length : 5",
    "a folded value": b"Content-Length:\r\n 5",
    "LF before the name": b"X: y\nContent-Length: 5",
    "a number beyond 64 bits": b"Content-Length: 18446744073709551621",
    "a number beyond all bounds": b"Content-Length: " + b"9" * 5_000,
    "twice": b"Content-Length: 5\r\nContent-Length: 5",
    "two numbers": b"Content-Length: 5\r\nContent-Length: 0",
    "two numbers, the other way": b"Content-Length: 0\r\nContent-Length: 5",
    "two cases": b"Content-Length: 5\r\ncontent-length: 6",
}

AMBIGUOUS_HEADS: dict[str, bytes] = {
    "CL.TE": _after_the_last_chunk(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "CL.TE, nothing but the end": b"Content-Length: 6\r\n" + _CHUNKED + b"\r\n0\r\n\r\n" + _HIDDEN,
    "TE.CL": _in_a_chunk(b"Transfer-Encoding: chunked", b"Content-Length: 4"),
    "TE.CL, zero": _after_the_last_chunk(b"Transfer-Encoding: chunked", b"Content-Length: 0"),
    "CL.TE, odd case": _in_a_chunk(b"content-length: 4", b"tRANSFER-eNCODING: cHUNKED"),
    "TE.TE in a chunk": _in_a_chunk(
        b"Transfer-Encoding: chunked", b"Transfer-encoding: cow", b"Content-Length: 4"
    ),
    **{f"TE: {why}": _after_the_last_chunk(field) for why, field in _CODINGS.items()},
    **{
        f"TE with a length: {why}": _in_a_chunk(b"Content-Length: 4", field)
        for why, field in _CODINGS.items()
    },
    **{f"CL: {why}": _by_length(field) for why, field in _LENGTHS.items()},
}
"""What follows `Host` in an HTTP/1.1 head; each is answered 400 and the connection closed."""

OLD_CHUNKED = _after_the_last_chunk(b"Connection: keep-alive", b"Transfer-Encoding: chunked")
"""Chunks in HTTP/1.0, where nobody has to know them."""


def _chunks(body: bytes) -> bytes:
    return _CHUNKED + b"\r\n" + body + _HIDDEN


BROKEN_CHUNKS: dict[str, bytes] = {
    "hexadecimal with its prefix": _chunks(b"0x5\r\nhello\r\n0\r\n\r\n"),
    "a plus": _chunks(b"+5\r\nhello\r\n0\r\n\r\n"),
    "a minus": _chunks(b"-5\r\nhello\r\n0\r\n\r\n"),
    "an underscore": _chunks(b"0_5\r\nhello\r\n0\r\n\r\n"),
    "a space before the size": _chunks(b" 5\r\nhello\r\n0\r\n\r\n"),
    "a space behind the size": _chunks(b"5 \r\nhello\r\n0\r\n\r\n"),
    "a tab behind the size": _chunks(b"5\t\r\nhello\r\n0\r\n\r\n"),
    "a comma in the size": _chunks(b"5,5\r\nhello\r\n0\r\n\r\n"),
    "a dot in the size": _chunks(b"5.0\r\nhello\r\n0\r\n\r\n"),
    "no size": _chunks(b"\r\nhello\r\n0\r\n\r\n"),
    "no hexadecimal digit": _chunks(b"g\r\nhello\r\n0\r\n\r\n"),
    "a digit of another script": _chunks("\u0665\r\nhello\r\n0\r\n\r\n".encode()),
    "a size beyond 64 bits": _chunks(b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "a size beyond all bounds": _chunks(b"f" * 1_000 + b"\r\nhello\r\n0\r\n\r\n"),
    "LF behind the size": _chunks(b"5\nhello\r\n0\r\n\r\n"),
    "CR behind the size": _chunks(b"5\rhello\r\n0\r\n\r\n"),
    "CR and a letter behind the size": _chunks(b"5\rX\nhello\r\n0\r\n\r\n"),
    "LF behind the data": _chunks(b"5\r\nhello\n0\r\n\r\n"),
    "CR behind the data": _chunks(b"5\r\nhello\r0\r\n\r\n"),
    "nothing behind the data": _chunks(b"5\r\nhello0\r\n\r\n"),
    "more data than said": _chunks(b"5\r\nhello you\r\n0\r\n\r\n"),
    "less data than said": _chunks(b"7\r\nhello\r\n0\r\n\r\n"),
    "LF in an extension": _chunks(b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "LF behind an extension": _chunks(b"5;a=b\nhello\r\n0\r\n\r\n"),
    "CR in an extension": _chunks(b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "LF in a quoted extension": _chunks(b'5;a="\n"\r\nhello\r\n0\r\n\r\n'),
    "a space before an extension": _chunks(b"5 ;a\r\nhello\r\n0\r\n\r\n"),
    "LF behind the last size": _chunks(b"5\r\nhello\r\n0\n\r\n"),
    "LF at the end": _chunks(b"5\r\nhello\r\n0\r\n\n"),
    "a last size of letters": _chunks(b"5\r\nhello\r\nzero\r\n\r\n"),
    "LF in a trailer": _chunks(b"5\r\nhello\r\n0\r\nX: y\n\r\n"),
    "a folded trailer": _chunks(b"5\r\nhello\r\n0\r\nX: y\r\n z\r\n\r\n"),
    "a space before a trailer's colon": _chunks(b"5\r\nhello\r\n0\r\nX : y\r\n\r\n"),
    "NUL in a trailer": _chunks(b"5\r\nhello\r\n0\r\nX: \x00\r\n\r\n"),
    "a length in the trailer": _chunks(b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n"),
    "a coding in the trailer": _chunks(b"5\r\nhello\r\n0\r\nTransfer-Encoding: x\r\n\r\n"),
    "no CRLF at the end": _chunks(b"5\r\nhello\r\n0\r\n"),
}
"""What follows `Host` where the head is in order and the body is not: whoever reads the body is
refused, whoever does not is answered, and in both cases that is the last answer."""

SOUND_CHUNKS: dict[str, bytes] = {
    "one chunk": b"5\r\nhello\r\n0\r\n\r\n",
    "a chunk for each byte": b"1\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1\r\nl\r\n1\r\no\r\n0\r\n\r\n",
    "capitals": b"5\r\nhello\r\n00\r\n\r\n",
    "leading zeros": b"0000000000000000000005\r\nhello\r\n000\r\n\r\n",
    "an extension": b"5;a\r\nhello\r\n0;b\r\n\r\n",
    "an extension with a value": b"5;a=b;c=d\r\nhello\r\n0\r\n\r\n",
    "an extension in quotes": b'5;a="b;\\"c\\""\r\nhello\r\n0\r\n\r\n',
    "a trailer": b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
    "many trailers": b"5\r\nhello\r\n0\r\n" + b"X-Sum: 1\r\n" * 50 + b"\r\n",
    "a trailer that names a host": b"5\r\nhello\r\n0\r\nHost: y\r\nHost: z\r\n\r\n",
    "a trailer that names an upgrade": b"5\r\nhello\r\n0\r\nUpgrade: h2c\r\n\r\n",
}
"""Each is the body `hello`."""

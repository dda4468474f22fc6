"""Much at once through one gateway: an upload, a download, and readers of streams that lag behind.

`python -m bench.bulk --url http://127.0.0.1:3000 --key KEY --model ALIAS` is a load generator, and
a process of its own: its memory must not be mistaken for the gateway's. It holds one block of
64 KiB, whatever it sends and reads; what comes is counted and thrown away. The readers read until
upload and download are done, and then hang up. I/O.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

MB = 1_000_000
MIB = 1024 * 1024
_BLOCK = memoryview(bytes(64 * 1024))
_ROOM = bytearray(64 * 1024)
_MAX_HEAD_BYTES = 16 * 1024
_TIMEOUT_S = 60.0
_READER_BYTES = 4096
_READER_PAUSE_S = 0.05
_READER_BUFFER_BYTES = 64 * 1024
_EDGE = "edge"


class BulkFailed(Exception):
    """Something did not come through whole; the text says what."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of whom. Sizes in bytes."""

    url: str
    key: str
    model: str
    upload_bytes: int
    download_mib: int
    readers: int


def connected(load: Load, *, receive_buffer_bytes: int = 0) -> socket.socket:
    """A connection to the gateway."""
    place = urlsplit(load.url)
    line = socket.socket()
    if receive_buffer_bytes:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    line.settimeout(_TIMEOUT_S)
    line.connect((place.hostname, place.port))
    return line


def head(load: Load, method: str, path: str, **fields: str | int) -> bytes:
    """A request's head; underscores in names become dashes. Pure."""
    named = {
        "Host": "gateway",
        "Authorization": f"Bearer {load.key}",
        "x-aisix-model": load.model,
        "Connection": "close",
        **{name.replace("_", "-"): str(value) for name, value in fields.items()},
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def form_ends(filename: str) -> tuple[bytes, bytes]:
    """What stands before and behind the content of a file in an upload. Pure."""
    disposition = f'Content-Disposition: form-data; name="file"; filename="{filename}"'
    begin = (
        f'--{_EDGE}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        f"--{_EDGE}\r\n{disposition}\r\n\r\n"
    )
    return begin.encode(), f"\r\n--{_EDGE}--\r\n".encode()


def upload_head(load: Load, filename: str, size: int) -> bytes:
    """All that stands before the content of an upload, the request's head too. Pure."""
    begin, end = form_ends(filename)
    content_type = f"multipart/form-data; boundary={_EDGE}"
    length = len(begin) + size + len(end)
    told = head(load, "POST", "/v1/files", Content_Type=content_type, Content_Length=length)
    return told + begin


def whole_answer(line: socket.socket) -> bytes:
    """A short answer of 200, its body. Raises BulkFailed."""
    answer = b"".join(iter(lambda: line.recv(4096), b""))
    start, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in start.partition(b"\r\n")[0]:
        raise BulkFailed(f"an answer that is no 200: {answer[:300]!r}")
    return body


def make_file(load: Load) -> str:
    """The id of a file that is `download_mib` large (see the simulator's script `bulk`)."""
    filename = f"out-bulk{load.download_mib}.bin"
    with connected(load) as line:
        line.sendall(upload_head(load, filename, 1) + b"x" + form_ends(filename)[1])
        return str(json.loads(whole_answer(line))["id"])


def uploaded(load: Load, line: socket.socket) -> Iterator[int]:
    """Each step sends what the socket takes, and says how much that was."""
    line.sendall(upload_head(load, "in.bin", load.upload_bytes))
    line.setblocking(False)
    left = load.upload_bytes
    while left:
        sent = line.send(_BLOCK[: min(left, len(_BLOCK))])
        left -= sent
        yield sent
    line.setblocking(True)
    line.settimeout(_TIMEOUT_S)
    line.sendall(form_ends("in.bin")[1])
    whole_answer(line)


def asked(load: Load, id: str) -> socket.socket:
    """A connection on which a file was asked for."""
    line = connected(load)
    line.sendall(head(load, "GET", f"/v1/files/{id}/content"))
    return line


def downloaded(load: Load, line: socket.socket) -> Iterator[int]:
    """Each step reads what has come, and says how much that was. Raises BulkFailed."""
    left = load.download_mib * MIB - after_head(line)
    line.setblocking(False)
    while left:
        count = line.recv_into(_ROOM)
        if not count:
            raise BulkFailed(f"the download ended {left} bytes too early")
        left -= count
        yield count


def after_head(line: socket.socket) -> int:
    """Read the head of a 200; how much of the body came with it. Raises BulkFailed."""
    held = b""
    while b"\r\n\r\n" not in held:
        piece = line.recv(4096)
        if not piece or len(held) > _MAX_HEAD_BYTES:
            raise BulkFailed(f"no head: {held[:300]!r}")
        held += piece
    start, _, rest = held.partition(b"\r\n\r\n")
    if b" 200 " not in start.partition(b"\r\n")[0]:
        raise BulkFailed(f"an answer that is no 200: {held[:300]!r}")
    return len(rest)


def reader(load: Load) -> socket.socket:
    """A stream that is asked for, with little room for what it brings."""
    line = connected(load, receive_buffer_bytes=_READER_BUFFER_BYTES)
    message = {"role": "user", "content": "x"}
    body = json.dumps({"model": load.model, "stream": True, "messages": [message]}).encode()
    told = head(
        load,
        "POST",
        "/v1/chat/completions",
        Content_Type="application/json",
        Content_Length=len(body),
    )
    line.sendall(told + body)
    after_head(line)
    line.setblocking(False)
    return line


def read_a_little(readers: Sequence[socket.socket]) -> int:
    """A few KB of each stream; bytes read. Raises BulkFailed when one has ended."""
    total = 0
    for line in readers:
        try:
            count = line.recv_into(_ROOM, _READER_BYTES)
        except BlockingIOError:
            continue
        if not count:
            raise BulkFailed("a stream ended while it was read")
        total += count
    return total


def run(load: Load) -> dict[str, float]:
    """All of it at once; how long it took, and how much the readers read. Raises BulkFailed."""
    id = make_file(load)
    readers = [reader(load) for _ in range(load.readers)]
    began = last_read = time.monotonic()
    read_bytes = 0
    with selectors.DefaultSelector() as selector:
        into, out_of = connected(load), asked(load, id)
        selector.register(into, selectors.EVENT_WRITE, uploaded(load, into))
        selector.register(out_of, selectors.EVENT_READ, downloaded(load, out_of))
        while selector.get_map():
            for key, _ in selector.select(_READER_PAUSE_S):
                if next(key.data, None) is None:
                    selector.unregister(key.fileobj)
            if time.monotonic() - last_read >= _READER_PAUSE_S:
                last_read = time.monotonic()
                read_bytes += read_a_little(readers)
    seconds = time.monotonic() - began
    for line in (*readers, into, out_of):
        line.close()
    if load.readers and not read_bytes:
        raise BulkFailed("no stream brought anything")
    return {"seconds": seconds, "read_mb": read_bytes / MB}


def main(arguments: Sequence[str] | None = None) -> int:
    """Load as the command line says; one line of JSON."""
    parser = argparse.ArgumentParser(prog="bench.bulk", description="Much at once.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", required=True, help="of a caller that may use files")
    parser.add_argument("--model", required=True, help="whose stream is long (script bulk<N>)")
    parser.add_argument("--mb", type=int, default=500, help="size of upload and of download")
    parser.add_argument("--readers", type=int, default=200)
    told = parser.parse_args(arguments)
    mib = told.mb * MB // MIB
    load = Load(told.url, told.key, told.model, told.mb * MB, mib, told.readers)
    try:
        print(json.dumps(run(load)), flush=True)
    except (BulkFailed, OSError) as failure:
        print(f"bench.bulk: {failure!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

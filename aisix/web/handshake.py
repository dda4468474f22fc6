"""Whether a request for a session opens a WebSocket properly (RFC 6455 §4.2.1). Pure."""

from __future__ import annotations

from aisix.core.websocket import is_key
from aisix.errors import BadRequest, GatewayError, UpgradeRequired
from aisix.web.codec import Message

VERSION = "13"


def check_handshake(message: Message) -> GatewayError | None:
    """Why `message` cannot open a session, None when it can."""
    headers = message.headers
    if message.old:
        return BadRequest("a WebSocket needs HTTP/1.1")
    if not message.upgrade:
        return UpgradeRequired(
            "this route speaks WebSocket: send Upgrade: websocket with Connection: Upgrade",
            headers={"Upgrade": "websocket"},
        )
    if headers.get("sec-websocket-version") != VERSION:
        return UpgradeRequired(
            f"the WebSocket version is not supported: send Sec-WebSocket-Version: {VERSION}",
            headers={"Upgrade": "websocket", "Sec-WebSocket-Version": VERSION},
        )
    if not is_key(headers.get("sec-websocket-key")):
        return BadRequest("Sec-WebSocket-Key must be 16 bytes in base64")
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        return BadRequest("the handshake of a WebSocket has no body")
    return None

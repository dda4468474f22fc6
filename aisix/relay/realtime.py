"""Reads the events of a realtime session as they pass, and puts names right. Pure.

Events are JSON in text messages. What an event is stands near its beginning, so most of them, audio
above all, are never parsed. Read in full are those that report usage or carry text; replaced are
two that name a model: the upstream tells its own name, which becomes the caller's, and the caller
tells its own, which becomes the deployment's. All else passes as it is, errors too: in a session
they answer a mistake of the caller's and end nothing.
"""

from __future__ import annotations

import re

from aisix.core.ports import Meter
from aisix.relay.document import parse_object, render
from aisix.relay.frames import Interest

_TYPE = re.compile(rb'"type"\s*:\s*"([a-z_.]+)"')
_SESSION = (b"session.created", b"session.updated")
_UPDATE = b"session.update"
_REPORTS = (b"response.done", b"conversation.item.input_audio_transcription.completed")
_DELTA = b".delta"
_WRITTEN = (b"text.delta", b"transcript.delta", b"arguments.delta")
"""How the deltas end that hold what the model wrote or said, as text."""


class DownwardEvents:
    """What the upstream sends. `saw_content` once the model said or wrote something."""

    def __init__(self, *, alias_name: str, meter: Meter) -> None:
        self._alias_name = alias_name
        self._meter = meter
        self.saw_content = False

    def judge(self, beginning: bytes) -> Interest:
        """What is wanted of the event that begins so."""
        kind = _kind(beginning)
        if kind.endswith(_DELTA):
            if not kind.startswith(b"response."):
                return Interest.NONE
            self.saw_content = True
            return Interest.READ if kind.endswith(_WRITTEN) else Interest.NONE
        if kind in _SESSION:
            return Interest.REPLACE
        return Interest.READ if kind in _REPORTS else Interest.NONE

    def read(self, message: bytes) -> bytes | None:
        """Take in an event; another text for it, or None."""
        event = parse_object(message)
        if event is None:
            return None
        self._meter.observe(event)
        session = event.get("session")
        if not isinstance(session, dict) or session.get("model", self._alias_name) in (
            self._alias_name,
            None,
        ):
            return None
        session["model"] = self._alias_name
        return render(event, message)


class UpwardEvents:
    """What the caller sends."""

    def __init__(self, *, alias_name: str, deployment_name: str) -> None:
        self._alias_name = alias_name
        self._deployment_name = deployment_name

    def judge(self, beginning: bytes) -> Interest:
        """What is wanted of the event that begins so."""
        return Interest.REPLACE if _kind(beginning) == _UPDATE else Interest.NONE

    def read(self, message: bytes) -> bytes | None:
        """Another text for an event that names the model as the caller knows it, or None."""
        event = parse_object(message)
        session = event.get("session") if event is not None else None
        if event is None or not isinstance(session, dict):
            return None
        if session.get("model") != self._alias_name or self._alias_name == self._deployment_name:
            return None
        session["model"] = self._deployment_name
        return render(event, message)


def _kind(beginning: bytes) -> bytes:
    found = _TYPE.search(beginning)
    return found[1] if found is not None else b""

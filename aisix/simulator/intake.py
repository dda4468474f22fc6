"""A request's body as it comes in: forms are read in passing, anything else is kept.

What is kept has a limit, so no upload takes more memory than that; of a form's bytes as they were
sent, the beginning and the digest remain. No I/O.
"""

from __future__ import annotations

import hashlib

from aisix.simulator.forms import Form, FormReader, is_form

_KEPT_FORM_BYTES = 64 * 1024


class Body:
    """One body. `kept` holds it whole unless it is a form, or `overflowed`."""

    def __init__(self, content_type: str, most_bytes: int) -> None:
        self._reader = FormReader(content_type) if is_form(content_type) else None
        self._room = most_bytes if self._reader is None else _KEPT_FORM_BYTES
        self._digest = hashlib.sha256()
        self.kept = bytearray()
        self.overflowed = False
        self.form: Form | None = None

    def feed(self, chunk: bytes) -> None:
        """The next piece."""
        if self._reader is not None:
            self._reader.feed(chunk)
            self._digest.update(chunk)
        elif len(chunk) > self._room:
            self.overflowed = True
        kept = chunk[: self._room]
        self.kept += kept
        self._room -= len(kept)

    def finish(self) -> None:
        """The body has ended, or will not come to its end."""
        if self._reader is not None:
            self.form = self._reader.finish()

    @property
    def sha256(self) -> str:
        """The digest of a form's bytes; of other bodies there is no need for one."""
        return self._digest.hexdigest() if self._reader is not None else ""

"""Certificates for tests: one authority, servers under it, in good order or not. Writes files."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server certificate, its key, and the authority that signed it: three PEM files."""

    chain: Path
    key: Path
    authority: Path

    @property
    def arguments(self) -> Sequence[str]:
        """The simulator's options for it."""
        return ("--tls-cert", str(self.chain), "--tls-key", str(self.key))


def make_certificate(
    folder: Path, *names: str, not_after: datetime | None = None, label: str = "server"
) -> Certificate:
    """A certificate for `names`, signed by an authority of its own."""
    authority = trustme.CA()
    leaf = authority.issue_cert(*names, not_after=not_after)
    made = Certificate(folder / f"{label}.pem", folder / f"{label}.key", folder / f"{label}-ca.pem")
    leaf.private_key_pem.write_to_path(made.key)
    made.chain.unlink(missing_ok=True)
    for pem in leaf.cert_chain_pems:
        pem.write_to_path(made.chain, append=True)
    authority.cert_pem.write_to_path(made.authority)
    return made


@contextmanager
def local_tls() -> Iterator[tuple[ssl.SSLContext, str]]:
    """What a server on 127.0.0.1 speaks TLS with, and the file by which its clients trust it."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with authority.cert_pem.tempfile() as ca_file:
        yield context, ca_file

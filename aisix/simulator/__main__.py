"""`python -m aisix.simulator`: the simulator as a program.

Reads the command line, listens, prints one line with the address, and stays until SIGINT or
SIGTERM, which end it quietly with status 0. What cannot work (a port in use, a bad certificate,
an unknown script token) is said in one line on stderr, with status 2.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from aisix import __version__
from aisix.simulator import faults
from aisix.simulator.entra import Directory
from aisix.simulator.options import SimulatorOptions
from aisix.simulator.script import Script, ScriptError, parse
from aisix.simulator.server import Simulator

_PROGRAM = "aisix.simulator"
_DEFAULT_PORT = 4010
_LAST_PORT = 65_535


class _Unusable(Exception):
    """The command line asks for something that cannot be."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {_PROGRAM}",
        description="Behaves like Azure OpenAI and the Entra ID token endpoint, on the wire.",
        epilog="Scripts and the control endpoint: docs/simulator.md",
    )
    add = parser.add_argument
    add("--version", action="version", version=__version__)
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    add("--port", type=_port, default=_DEFAULT_PORT, help="0 = any free one (default %(default)s)")
    add("--tls-cert", metavar="PEM", help="serve HTTPS with this certificate chain")
    add("--tls-key", metavar="PEM", help="its private key")
    add("--api-key", action="append", metavar="KEY", help="a resource key (default simulator-key)")
    add("--no-key-auth", action="store_true", help="take Entra tokens only (403 for keys)")
    add("--deployments", metavar="A,B", help="the deployments there are (default: any name)")
    add("--no-name-scripts", action="store_true", help="deployment names are only names")
    add("--context-tokens", type=_whole, default=128_000, help="context window (%(default)s)")
    add("--latency-ms", type=_whole, help="wait before every answer")
    add("--chunks", type=_whole, help="content pieces per answer")
    add("--chunk-interval-ms", type=_whole, help="wait after each SSE event")
    add("--script", default="", help='script of every request, e.g. "slow50 err429 every20"')
    add("--entra", action=argparse.BooleanOptionalAction, default=True, help="token endpoint")
    add("--tenants", metavar="A,B", help="the tenants there are (default: any)")
    add("--clients", metavar="A,B", help="the client ids there are (default: any)")
    add("--client-secret", action="append", metavar="S", help="default simulator-secret")
    add("--client-certificate", action="append", metavar="PEM", help="a file; registered with all")
    add(
        "--federated-token-file",
        metavar="PATH",
        help="its text is a client assertion that is known",
    )
    add("--identity", action="append", metavar="NAME", help="a user-assigned managed identity")
    add("--no-system-identity", action="store_true", help="managed identities by name only")
    add("--token-lifetime-secs", type=_whole, default=3599, help="(default %(default)s)")
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"must be from 0 to {_LAST_PORT}, not {text!r}")
    return int(text)


def options_from(arguments: argparse.Namespace) -> SimulatorOptions:
    """The command line as options.

    Raises:
        _Unusable: a certificate or script that does not work.
    """
    directory = Directory(
        tenants=_names(arguments.tenants),
        clients=_names(arguments.clients),
        client_secrets=frozenset(arguments.client_secret or ["simulator-secret"]),
        certificates=tuple(map(_certificate, arguments.client_certificate or ())),
        federated_token_file=_path(arguments.federated_token_file),
        identities=frozenset(arguments.identity or ()),
        system_identity=not arguments.no_system_identity,
        token_lifetime_s=arguments.token_lifetime_secs,
    )
    return SimulatorOptions(
        host=arguments.host,
        port=arguments.port,
        tls=_tls(arguments.tls_cert, arguments.tls_key),
        api_keys=frozenset(arguments.api_key or ["simulator-key"]),
        key_auth=not arguments.no_key_auth,
        deployments=_names(arguments.deployments),
        scripted_names=not arguments.no_name_scripts,
        context_tokens=arguments.context_tokens,
        script=_script(arguments),
        entra=arguments.entra,
        directory=directory,
    )


def _names(text: str | None) -> frozenset[str] | None:
    return frozenset(filter(None, text.split(","))) if text is not None else None


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _certificate(path: str) -> str:
    try:
        text = Path(path).read_text()
        x509.load_pem_x509_certificate(text.encode())
    except (OSError, ValueError) as error:
        raise _Unusable(f"cannot use {path} as client certificate: {error}") from error
    return text


def _script(arguments: argparse.Namespace) -> Script:
    pace = Script(slow=arguments.latency_ms, n=arguments.chunks, d=arguments.chunk_interval_ms)
    try:
        return parse(arguments.script, errors=faults.NAMES).over(pace)
    except ScriptError as error:
        raise _Unusable(str(error)) from error


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise _Unusable("--tls-cert and --tls-key go together")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise _Unusable(f"cannot use {certificate} with {key}: {error}") from error
    return context


async def serve(options: SimulatorOptions) -> None:
    """Run until SIGINT or SIGTERM.

    Raises:
        _Unusable: the address cannot be had.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    simulator = Simulator(options)
    try:
        simulator.start()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        where = f"{options.host}:{options.port}"
        raise _Unusable(f"cannot listen on {where}: {why} (choose another with --port)") from error
    print(f"simulator listening on {simulator.url}", flush=True)
    await ended.wait()
    await simulator.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    try:
        asyncio.run(serve(options_from(build_parser().parse_args(arguments))))
    except _Unusable as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

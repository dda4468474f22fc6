"""What stops a start, or a write, is said in words; what was stored stays as it was."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import socket
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.process import GatewayProgram, gateway, start_refused

_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE = 1


ROWS = 20
SEAL = {"AISIX_STORE__ENCRYPTION_KEY": "env:SEAL", "SEAL": b64encode(bytes([1]) * 32).decode()}
OTHER_SEAL = {**SEAL, "SEAL": b64encode(bytes([2]) * 32).decode()}
SHELL = {"AISIX_ADMIN_KEY": "of the guide", "AISIX_API_KEY": "of the guide"}
"""The guide's own variables, which configure nothing."""


def fill(folder: Path, settings: Mapping[str, str]) -> Path:
    with gateway(folder, settings) as program:
        for _ in range(ROWS):
            program.create_provider_key("acme-west")
        assert program.stop().status == 0
    return folder


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with provider keys in it and its key file beside it."""
    return fill(tmp_path_factory.mktemp("filled"), SHELL)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose encryption key is configured."""
    return fill(tmp_path_factory.mktemp("sealed"), SEAL)


def copy(store: Path, folder: Path) -> bytes:
    """A copy to do harm to; what is in its database."""
    shutil.copytree(store, folder, dirs_exist_ok=True)
    return (folder / "aisix.db").read_bytes()


def stored_provider_keys(folder: Path, settings: Mapping[str, str] | None = None) -> int:
    with gateway(folder, settings) as program:
        return len(program.manage("GET", "provider_keys").json)


# --- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting", ["proxy.addr", "admin.addr", "observability.metrics.prometheus.addr"]
)
def test_a_port_in_use_is_said_in_one_line(tmp_path: Path, setting: str) -> None:
    variable = f"AISIX_{setting.replace('.', '__').upper()}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = start_refused(tmp_path, {variable: address})
    assert ended.status == 1
    (line,) = ended.stderr.splitlines()
    assert f'"{setting}: cannot listen on {address}: Address already in use; is another' in line
    assert not (tmp_path / "aisix.db").exists(), "nothing may be touched before the ports are had"


def test_an_address_of_another_machine_is_named_with_the_way_out(tmp_path: Path) -> None:
    ended = start_refused(tmp_path, {"AISIX_PROXY__ADDR": "192.0.2.1:3000"})
    assert ended.status == 1
    assert "proxy.addr: cannot listen on 192.0.2.1:3000: " in ended.stderr
    assert "choose an address of this machine" in ended.stderr
    assert "another gateway" not in ended.stderr


# --- configuration ------------------------------------------------------------------------------


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "proxy:\n  adr: 127.0.0.1:0\n"
        "admin:\n  admin_keys: ['env:NOT_SET_ANYWHERE']\n"
        "upstream:\n  stream_timeout_ms: -5\n"
        "ratelimit:\n  backend: redis\n"
    )
    ended = start_refused(tmp_path, {"AISIX_UPSTREAM__HTTP2": "maybe"}, config=config)
    assert ended.status == 2
    said = ended.stderr.splitlines()
    assert all(line.startswith("config: ") for line in said), said
    for words in (
        "proxy.adr: unknown key; did you mean proxy.addr?",
        "upstream.stream_timeout_ms: must be ≥ 0, not -5",
        "AISIX_UPSTREAM__HTTP2",
        "ratelimit.backend",
        "NOT_SET_ANYWHERE",
    ):
        assert any(words in line for line in said), (words, said)


@pytest.mark.parametrize(
    ("content", "words"),
    [("proxy: [", "line"), (None, "No such file")],
    ids=["not YAML", "not there"],
)
def test_a_file_that_is_no_configuration_is_named(
    tmp_path: Path, content: str | None, words: str
) -> None:
    config = tmp_path / "config.yaml"
    if content is not None:
        config.write_text(content)
    ended = start_refused(tmp_path, config=config)
    assert ended.status == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_unknown_variable_stops_the_start_with_a_guess(tmp_path: Path) -> None:
    ended = start_refused(tmp_path, {"AISIX_PROXI__ADDR": "127.0.0.1:0"})
    assert ended.status == 2
    assert "AISIX_PROXI__ADDR" in ended.stderr
    assert "did you mean" in ended.stderr


def test_the_public_admin_key_is_refused_on_a_public_address(tmp_path: Path) -> None:
    ended = start_refused(tmp_path, {"AISIX_ADMIN__ADDR": "0.0.0.0:0"})
    assert ended.status == 2
    assert "admin.addr: 0.0.0.0:0 can be reached from other machines" in ended.stderr
    assert "bind 127.0.0.1:0" in ended.stderr
    assert "admin-local-only-change-me" not in ended.stderr


# --- the store ----------------------------------------------------------------------------------


def drop_dac_override() -> None:
    """Make root obey file modes, as everybody else does."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0):
        os._exit(99)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with read_only(folder):
        ended = start_refused(folder, preexec=drop_dac_override)
    assert ended.status == 1
    (line,) = ended.stderr.splitlines()
    assert "gateway.refused" in line
    assert "cannot be opened for writing: Permission denied" in line


def test_a_folder_that_became_read_only_loses_nothing(filled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    before = copy(filled, folder)
    with read_only(folder):
        ended = start_refused(folder, preexec=drop_dac_override)
    assert ended.status == 1
    assert "folder" in ended.stderr
    assert (folder / "aisix.db").read_bytes() == before
    assert stored_provider_keys(folder) == ROWS


@pytest.mark.parametrize("damage", ["garbage", "a page", "cut"])
def test_a_damaged_database_stops_the_start_and_is_left_alone(
    filled: Path, tmp_path: Path, damage: str
) -> None:
    content = bytearray(copy(filled, tmp_path))
    if damage == "garbage":
        content = bytearray(os.urandom(20_000))
    elif damage == "a page":
        content[4096:8192] = os.urandom(4096)
    else:
        del content[9000:]
    (tmp_path / "aisix.db").write_bytes(content)
    ended = start_refused(tmp_path)
    assert ended.status == 1
    (line,) = ended.stderr.splitlines()
    assert "damaged" in line
    assert "restore a backup" in line
    assert (tmp_path / "aisix.db").read_bytes() == content


def test_a_wrong_encryption_key_stops_the_start_and_changes_nothing(
    sealed: Path, tmp_path: Path
) -> None:
    before = copy(sealed, tmp_path)
    ended = start_refused(tmp_path, OTHER_SEAL)
    assert ended.status == 1
    (line,) = ended.stderr.splitlines()
    assert "the encryption key from store.encryption_key is not the one" in line
    assert OTHER_SEAL["SEAL"] not in line
    assert (tmp_path / "aisix.db").read_bytes() == before
    assert stored_provider_keys(tmp_path, SEAL) == ROWS


def test_a_lost_key_file_stops_the_start_and_none_is_made(filled: Path, tmp_path: Path) -> None:
    copy(filled, tmp_path)
    key_file = tmp_path / "aisix.db.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    key = key_file.read_bytes()
    key_file.unlink()
    ended = start_refused(tmp_path)
    assert ended.status == 1
    assert "restore the key file" in ended.stderr
    assert not key_file.exists()
    key_file.write_bytes(key)
    assert stored_provider_keys(tmp_path) == ROWS


# --- a full disk --------------------------------------------------------------------------------


def limit_files(program: GatewayProgram, size_bytes: int) -> None:
    """No file of the process may grow beyond this: the nearest thing to a full disk."""
    _, hard = resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (size_bytes, hard))


def test_a_full_disk_refuses_writes_and_nothing_else(tmp_path: Path) -> None:
    with gateway(tmp_path) as program:
        kept = program.create_provider_key("acme-west")
        program.create_caller_key()
        limit_files(program, (tmp_path / "aisix.db-wal").stat().st_size)
        refused = program.manage(
            "POST",
            "provider_keys",
            {"display_name": "p", "provider": "azure", "secret": "s", "api_base": "acme-east"},
        )
        assert refused.status == 500
        assert refused.json["error_msg"].startswith("store error: ")
        assert "disk" in refused.json["error_msg"]
        assert program.call("/v1/models").status == 200
        assert [row["id"] for row in program.manage("GET", "provider_keys").json] == [kept]
        limit_files(program, resource.RLIM_INFINITY)
        program.create_provider_key("acme-east")
        program.stop(signal.SIGKILL)
    assert stored_provider_keys(tmp_path) == 2


def test_a_disk_that_is_full_at_the_start_is_named(tmp_path: Path) -> None:
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))

    ended = start_refused(tmp_path, preexec=no_room)
    assert ended.status == 1
    (line,) = ended.stderr.splitlines()
    assert "gateway.refused" in line
    assert "disk" in line

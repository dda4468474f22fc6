"""A bash session that runs blocks of commands one after the other, as a reader of a manual does.

curl finds a configuration in its home that leads the ports written in the manual to those that
are really in use, so the commands need no change. I/O.
"""

from __future__ import annotations

import re
import subprocess
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from tests.support.process import ROOT, clean_env

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TIMEOUT_S = 30.0


def blocks(markdown: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [text for found, text in _BLOCK.findall(markdown) if found == language]


class Shell:
    """One session; a context manager."""

    def __init__(self, home: Path, ports: Mapping[int, str]) -> None:
        """`ports` maps a port of 127.0.0.1 in the manual to the URL that answers for it."""
        lines = [
            f'connect-to = "127.0.0.1:{port}:{urlsplit(url).netloc}"\n'
            for port, url in ports.items()
        ]
        (home / ".curlrc").write_text("".join(lines))
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=ROOT,
            env=clean_env({"HOME": str(home), "CURL_HOME": str(home)}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, block: str) -> str:
        """What a block prints. Raises AssertionError when its last command fails."""
        mark = uuid.uuid4().hex
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{block}\nprintf '\\n{mark} %s\\n' $?\n")
        stdin.flush()
        watchdog = threading.Timer(TIMEOUT_S, self._process.kill)
        watchdog.start()
        said: list[str] = []
        try:
            for line in stdout:
                if line.startswith(mark):
                    assert line.split()[1] == "0", (block, said)
                    return "".join(said).strip()
                said.append(line)
        finally:
            watchdog.cancel()
        raise AssertionError(f"the shell ended in:\n{block}\n{''.join(said)}")

    def __enter__(self) -> Shell:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate("exit\n", timeout=TIMEOUT_S)

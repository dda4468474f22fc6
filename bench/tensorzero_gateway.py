"""Starts TensorZero's gateway from its Python package; run by the interpreter of its environment.

The package carries the gateway in its extension module. The documented way to start it is to patch
an OpenAI client; any object with a `base_url` will do. Prints that URL, then waits for its end.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from types import SimpleNamespace


def main(config: str) -> None:
    """Serve until terminated."""
    tensorzero = import_module("tensorzero")  # in its own environment only
    client = SimpleNamespace(base_url="")
    tensorzero.patch_openai_client(client, config_file=config, async_setup=False)
    print(client.base_url, flush=True)
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1])

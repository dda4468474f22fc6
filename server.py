"""Entry point: `python server.py --config config/config.yaml`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from aisix import __version__
from aisix.allocator import calm_collector, fix_thresholds
from aisix.config import ConfigError, load
from aisix.lifecycle import serve
from aisix.supervisor import supervise
from aisix.workers.sizing import worker_count


def main() -> int:
    """Parse arguments, load the configuration, serve until told to stop."""
    parser = argparse.ArgumentParser(description="AISIX gateway for Azure OpenAI")
    parser.add_argument("--config", default="config/config.yaml", help="path of the YAML file")
    parser.add_argument("--version", action="version", version=f"aisix {__version__}")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            print(f"config: {problem}", file=sys.stderr)
        return 2
    fix_thresholds()
    calm_collector()
    workers = worker_count(config.proxy.workers)
    if workers == 1:
        return asyncio.run(serve(config))
    return supervise(config, workers)


if __name__ == "__main__":
    sys.exit(main())

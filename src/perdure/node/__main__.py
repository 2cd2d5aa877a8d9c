"""``python -m perdure.node [--detach]``: fcrund, for the home that the environment names."""

from __future__ import annotations

import argparse
import sys

from perdure.errors import PerdureError
from perdure.host.paths import Home


def main() -> int:
    parser = argparse.ArgumentParser(prog="fcrund", description="the node daemon of Perdure")
    parser.add_argument("--detach", action="store_true", help="run in the background; return when it serves")
    options = parser.parse_args()
    from perdure.node import daemon

    home = Home.find()
    try:
        return daemon.detach(home) if options.detach else daemon.run(home)
    except PerdureError as error:
        sys.stderr.write(f"fcrund: {error}\n")
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())

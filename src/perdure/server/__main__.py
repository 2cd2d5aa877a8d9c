"""``python -m perdure.server``: perdured, in the foreground, for the home that the environment names."""

from __future__ import annotations

import logging
import os
import sys

from perdure.errors import PerdureError
from perdure.host.paths import Home


def main() -> int:
    from perdure.server import daemon

    try:
        return daemon.run(Home.find())
    except PerdureError as error:
        sys.stderr.write(f"perdured: {error}\n")
        return error.exit_status


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stderr.flush()
    # Threads may still wait for the node. What they ask for goes on there, and the next server finds it.
    os._exit(status)

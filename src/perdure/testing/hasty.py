"""``python -m perdure.testing.hasty --detach``: fcrund that soon gives up what does not answer."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

from perdure.client.node import NodeClient
from perdure.execution.sandboxes import feeding, machine
from perdure.host.paths import Home
from perdure.node.__main__ import main

GUEST_S = 10.0  # a third of what a node has, and still more than an emulated guest on a busy machine takes
STORE_S = 5.0  # of 45


def start(home: Home) -> None:
    """In the place of the node that serves the home; what it runs goes on."""
    NodeClient(home).shutdown()
    environ = {**os.environ, "PERDURE_HOME": str(home.root), "PERDURE_CACHE": str(home.cache)}
    argv = [sys.executable, "-m", "perdure.testing.hasty", "--detach"]
    subprocess.run(argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, timeout=60)


if __name__ == "__main__":
    machine.SILENT_S = GUEST_S
    # mypy: a name of a class is given to what makes one; the node asks for it by that name
    feeding.Feeder = functools.partial(feeding.Feeder, lost_after_s=STORE_S)  # type: ignore[assignment, misc]
    sys.exit(main())

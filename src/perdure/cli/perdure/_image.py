"""The image of agents that name none, made with its progress on the terminal."""

from __future__ import annotations

import sys

from perdure.client import defaultimage

DEFAULT_IMAGE = defaultimage.NAME
is_default = defaultimage.is_meant


def ensure_default() -> str:
    """The default image's name, once this machine's node has it."""
    from perdure.client.node import NodeClient, ensure_running
    from perdure.host.identity import node_home
    from perdure.host.paths import Home
    from perdure.host.progress import TerminalProgress

    home = node_home(Home.find())
    ensure_running(home)
    if defaultimage.is_there(NodeClient(home)) or not sys.stderr.isatty():
        return defaultimage.ensure(NodeClient(home))
    with TerminalProgress() as progress:
        return defaultimage.ensure(NodeClient(home, progress))

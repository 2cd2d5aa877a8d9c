"""The image of agents that name none: a minimal Debian with Python, built from packages on its first use."""

from __future__ import annotations

import sys

DEFAULT_IMAGE = "perdure/python"
PACKAGES = ("python3-minimal", "libpython3-stdlib")


def is_default(name: str) -> bool:
    return name.removesuffix(":latest") in ("", DEFAULT_IMAGE)


def ensure_default() -> str:
    """The default image's name, once this machine's node has it."""
    from perdure.client.node import NodeClient, ensure_running
    from perdure.host.identity import node_home
    from perdure.host.paths import Home
    from perdure.host.progress import TerminalProgress

    home = node_home(Home.find())
    ensure_running(home)
    if any(is_default(image.name) for image in NodeClient(home).images()):
        return DEFAULT_IMAGE
    if not sys.stderr.isatty():
        NodeClient(home).build_image(DEFAULT_IMAGE, PACKAGES)
        return DEFAULT_IMAGE
    with TerminalProgress() as progress:
        NodeClient(home, progress).build_image(DEFAULT_IMAGE, PACKAGES)
    return DEFAULT_IMAGE

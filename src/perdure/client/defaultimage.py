"""The image of those who name none: a minimal Debian with Python, built from packages on its first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.client.node import NodeClient

NAME = "perdure/python"
PACKAGES = ("python3-minimal", "libpython3-stdlib")


def is_meant(name: str) -> bool:
    """By this name, or by none."""
    return name.removesuffix(":latest") in ("", NAME)


def ensure(node: NodeClient) -> str:
    """Its name, once the node has it."""
    if not is_there(node):
        node.build_image(NAME, PACKAGES)
    return NAME


def is_there(node: NodeClient) -> bool:
    return any(is_meant(image.name) for image in node.images())

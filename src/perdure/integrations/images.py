"""Making a sandbox from an image that may not be here yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from perdure.client import defaultimage
from perdure.errors import NotFound

if TYPE_CHECKING:
    from perdure.client.node import NodeClient
    from perdure.model import SandboxInfo, SandboxSpec


def created(client: NodeClient, spec: SandboxSpec) -> SandboxInfo:
    """The new sandbox. Its image is pulled where the node has it not; without one it is Perdure's, which is built."""
    if defaultimage.is_meant(spec.image):
        spec = msgspec.structs.replace(spec, image=defaultimage.ensure(client))
    try:
        return client.create(spec)
    except NotFound as error:
        if error.details.get("image") != spec.image:
            raise
    client.registries.pull(spec.image)
    return client.create(spec)

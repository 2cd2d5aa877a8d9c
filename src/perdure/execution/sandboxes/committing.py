"""A new image of a sandbox: the layers of its image, and one with what its files differ in from that.

Its configuration is the image's, with what the sandbox was run with, as docker has it: command, environment, user …
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from perdure.errors import InvalidValue
from perdure.execution.images import parts as image_parts
from perdure.execution.images.config import changed, from_oci, to_oci
from perdure.execution.images.image import Image, ImageConfig
from perdure.execution.sandboxes import reading, trees
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.snapshots.diskspace import space_checked
from perdure.formats.references import full_name
from perdure.host.progress import Progress, silent
from perdure.model import SandboxSpec

_SETTINGS = (  # what an ``ImageConfig`` has; the rest stays as it is
    *("Entrypoint", "Cmd", "Env", "WorkingDir", "User", "ExposedPorts", "StopSignal", "Labels", "Volumes"),
)


async def commit(
    sandbox: Sandbox,
    name: str,
    *,
    author: str = "",
    message: str = "",
    instructions: Sequence[str] = (),
    still: bool = True,
    progress: Progress,
) -> Image:
    """name: of the image; empty for none. instructions: as of ``docker commit --change``. still: its workload stands
    still while it is read.

    Raises InvalidValue (a name, an instruction, a file that no layer can hold), Unsupported (the layers of its image
    are not here), NoSpace, and what ``reading`` does.
    """
    if name:
        full_name(name)
    images, record = sandbox.rooms.images, sandbox.record
    base = await asyncio.to_thread(images.parts, record.image_digest)
    document = _document(base, record.spec, author, message, instructions)
    async with changes_of(sandbox, still=still, progress=progress) as layer:

        def compose() -> Image:
            with images.holding_blobs():
                return images.compose(name, [*base.layers, layer], document, progress=progress)

        image = await asyncio.to_thread(compose)
    sandbox.emit("committed", image=image.name or image.digest, digest=image.digest)
    return image


@asynccontextmanager
async def changes_of(sandbox: Sandbox, *, still: bool = False, progress: Progress = silent) -> AsyncIterator[Path]:
    """The layer that a sandbox's files are over its image, as a tar in a file that is there until the block ends."""
    folder = sandbox.rooms.home.run / f"upload-{secrets.token_hex(6)}"
    try:
        with space_checked("the layer of an image"):
            folder.mkdir(mode=0o700)
            layer = folder / "layer.tar"
            async with reading.tree_of(sandbox, still=still) as tree:
                await _write(layer, trees.layer(tree.changes(content=True)), progress)
        yield layer
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _write(path: Path, pieces: Any, progress: Progress) -> None:
    done = 0
    with path.open("wb") as file:
        async with aclosing(pieces):
            async for data in pieces:
                file.write(data)
                done += len(data)
                progress("Reading changes", done, 0)


def _document(
    base: image_parts.Parts, spec: SandboxSpec, author: str, message: str, instructions: Sequence[str]
) -> dict[str, Any]:
    """The new image's configuration document (OCI image specification, config.md), without ``rootfs``."""
    document = base.document
    triggers = [text.strip()[len("ONBUILD ") :].strip() for text in instructions if _is_trigger(text)]
    if not all(triggers):
        raise InvalidValue("--change 'ONBUILD': it has no argument", hint="Such as: ONBUILD RUN make")
    config = changed(_run_with(from_oci(document, "the image"), spec), [i for i in instructions if not _is_trigger(i)])
    before: dict[str, Any] = document.get("config") or {}
    settings = {key: value for key, value in before.items() if key not in _SETTINGS} | to_oci(config)
    if triggers:
        settings["OnBuild"] = [*(settings.get("OnBuild") or []), *triggers]
    now = image_parts.now()
    made = {"created": now, "created_by": " ".join(spec.command), "author": author, "comment": message}
    history = [*base.history, {key: value for key, value in made.items() if value}]
    fresh = {"config": settings, "created": now, "history": history} | ({"author": author} if author else {})
    return {key: value for key, value in document.items() if key not in ("rootfs", "author", "container")} | fresh


def _is_trigger(instruction: str) -> bool:
    return instruction.strip().upper().startswith("ONBUILD")


def _run_with(config: ImageConfig, spec: SandboxSpec) -> ImageConfig:
    """What a sandbox was run with is what its image runs by default."""
    changes: dict[str, Any] = {"env": config.env | spec.env, "labels": config.labels | spec.labels}
    if spec.entrypoint is not None:
        changes |= {"entrypoint": spec.entrypoint, "cmd": spec.command}
    elif spec.command:
        changes["cmd"] = spec.command
    for key, value in (("cwd", spec.cwd), ("user", spec.user)):
        if value:
            changes[key] = value
    return msgspec.structs.replace(config, **changes)

"""Which Python an image has: a machine of it is asked, as nothing else knows."""

from __future__ import annotations

import hashlib
import json

from perdure.client.node import NodeClient
from perdure.errors import AgentInvalid, CommandNotExecutable, CommandNotFound, NotFound
from perdure.model import SandboxSpec
from perdure.runs.pack import Python

MEMORY_MIB = 256
_HINT = "It needs python3, 3.9 or newer, of CPython: take another image."
# For any Python from 3.9 on. A C library that has no such name is musl, which does not tell its version: wheels for its
# 1.2, of 2020, are what there is. It waits to be heard, and no longer: the server may have been killed meanwhile.
_ASKED = """
import json, os, sys, time
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
except ValueError:
    libc = ""
version = "%d.%d.%d" % sys.version_info[:3]
print(json.dumps([sys.implementation.name, version, os.uname().machine, libc or "musl 1.2"]), flush=True)
time.sleep(60)
"""


def ask(node: NodeClient, image: str) -> Python:
    """AgentInvalid: it has none, or one that wheels are not for. NotFound: there is no such image."""
    # It goes by itself when it ends; one that a server had made and not started when it was killed, by its name.
    name = f"python-of-{hashlib.sha256(image.encode()).hexdigest()[:12]}"
    _remove(node, name)
    spec = SandboxSpec(
        image=image,
        name=name,
        command=["python3", "-I", "-S", "-c", _ASKED],
        entrypoint=[],
        memory_mib=MEMORY_MIB,
        networks=["none"],
        auto_remove=True,
    )
    node.create(spec)
    try:
        node.start(name)
        said = _heard(node, name)
    except (CommandNotFound, CommandNotExecutable) as error:
        raise AgentInvalid(f"the image {image} has no python3", hint=_HINT) from error
    finally:
        _remove(node, name)
    try:
        implementation, version, machine, libc = json.loads(said)
    except ValueError:
        message = f"the image {image} has no python3 that packages could be for: {said[-500:].strip()}"
        raise AgentInvalid(message, hint=_HINT) from None
    if implementation != "cpython":
        raise AgentInvalid(f"the image {image} has {implementation} {version}", hint=_HINT)
    libc, _, libc_version = libc.partition(" ")
    return Python(version=version, machine=machine, libc=libc, libc_version=libc_version)


def _heard(node: NodeClient, name: str) -> str:
    said = b""
    try:
        for record in node.logs(name, follow=True):
            said += record.data
            if said.endswith(b"]\n"):
                break
    except NotFound:
        pass  # it has ended, and is gone
    return said.decode("utf-8", "replace")


def _remove(node: NodeClient, name: str) -> None:
    try:
        node.remove(name, force=True)
    except NotFound:
        pass

"""``-v``, ``--mount`` and ``--tmpfs``, parsed as Docker parses them; folders of this machine are copied in."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from perdure.errors import InvalidValue
from perdure.model import Mount, MountKind

if TYPE_CHECKING:
    from perdure.client.node import NodeClient
    from perdure.model import SandboxInfo

_FLAGS = {"readonly": True, "ro": True, "rw": False}
_SHARED = ("z", "Z", "cached", "delegated", "consistent")  # of other systems; a volume here is one sandbox's anyway


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-v",
        "--volume",
        action="append",
        default=[],
        metavar="[SOURCE:]PATH[:ro]",
        help="a volume by name, made where there is none; or a folder of this machine (/a/folder), which is COPIED in "
        "before the first start: a microVM shares no folders",
    )
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="type=TYPE,src=SOURCE,dst=PATH[,readonly]",
        help="the same in full: TYPE is volume, bind (a folder, copied in) or tmpfs",
    )
    parser.add_argument(
        "--tmpfs",
        action="append",
        default=[],
        metavar="PATH[:OPTIONS]",
        help="a file system in memory: /run/x:size=64m",
    )


def of(options: argparse.Namespace) -> list[Mount]:
    """Raises InvalidValue that names the option."""
    found = [volume(text) for text in options.volume]
    found += [_mount(text) for text in options.mount]
    for text in options.tmpfs:
        path, _, given = text.partition(":")
        found.append(Mount(kind=MountKind.TMPFS, target=path, options=[one for one in given.split(",") if one]))
    return found


def volume(text: str) -> Mount:
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise InvalidValue(f"--volume: {text!r} is not [SOURCE:]PATH[:ro]")
    source = parts[0] if len(parts) > 1 else ""
    words = parts[2].split(",") if len(parts) == 3 else []
    unknown = [word for word in words if word not in ("ro", "rw", "nocopy", *_SHARED)]
    if unknown:
        raise InvalidValue(f"--volume {text}: unknown option {unknown[0]!r}", hint="It takes ro, rw and nocopy.")
    target = parts[1] if len(parts) > 1 else parts[0]
    return _checked(text, "--volume", source, target, read_only="ro" in words, no_copy="nocopy" in words)


def _checked(text: str, option: str, source: str, target: str, *, read_only: bool, no_copy: bool = False) -> Mount:
    if not target.startswith("/"):
        raise InvalidValue(f"{option} {text}: the path in the sandbox must be absolute, it is {target!r}")
    if source.startswith(("/", "./", "../", "~")) or source in (".", ".."):
        return Mount(kind=MountKind.FOLDER, source=_folder(source, option), target=target, read_only=read_only)
    if "/" in source:
        raise InvalidValue(
            f"{option} {text}: {source!r} is no name of a volume", hint=f"A folder begins with / or ./: ./{source}"
        )
    return Mount(source=source, target=target, read_only=read_only, no_copy=no_copy)


def _folder(source: str, option: str) -> str:
    path = os.path.abspath(os.path.expanduser(source))
    if not os.path.exists(path):
        raise InvalidValue(f"{option}: {path}: no such file or folder")
    return path


def _mount(text: str) -> Mount:
    import csv

    fields: dict[str, str] = {}
    for part in next(csv.reader([text])):
        name, equals, value = part.partition("=")
        name = {"source": "src", "destination": "dst", "target": "dst", "ro": "readonly"}.get(name, name)
        fields[name] = value if equals else "true"
    kind = fields.pop("type", "volume")
    source, target = fields.pop("src", ""), fields.pop("dst", "")
    read_only = fields.pop("readonly", "false") in ("true", "1")
    no_copy = fields.pop("volume-nocopy", "false") in ("true", "1")
    size, mode = fields.pop("tmpfs-size", ""), fields.pop("tmpfs-mode", "")
    for ignored in ("consistency", "bind-propagation", "volume-driver"):
        if fields.get(ignored) in ("local", "rprivate", "private", "default", "consistent", "cached", "delegated"):
            del fields[ignored]
    if fields:
        raise InvalidValue(f"--mount {text}: unknown field {next(iter(fields))!r}")
    if not target:
        raise InvalidValue(f"--mount {text}: it needs dst=PATH")
    if kind == "tmpfs":
        options = [f"size={size}"] * bool(size) + [f"mode={mode}"] * bool(mode)
        return Mount(kind=MountKind.TMPFS, target=target, read_only=read_only, options=options)
    if kind == "bind" and not source.startswith(("/", "./", "../", "~", ".")):
        raise InvalidValue(f"--mount {text}: a bind needs src=/a/folder")
    if kind == "volume" and "/" in source:
        raise InvalidValue(f"--mount {text}: {source!r} is no name of a volume", hint="type=bind copies a folder in.")
    if kind not in ("volume", "bind"):
        raise InvalidValue(f"--mount {text}: unknown type {kind!r}", hint="It is volume, bind or tmpfs.")
    return _checked(text, "--mount", source, target, read_only=read_only, no_copy=no_copy)


def copy_in(client: NodeClient, info: SandboxInfo) -> None:
    """The folders of this machine, into a sandbox that was just created; it is removed where that fails."""
    try:
        for mount in info.spec.mounts:
            if mount.kind is MountKind.FOLDER:
                client.put_archive(info.id, "/", _packed(mount))
    except BaseException:
        client.remove(info.id, force=True, volumes=True)
        raise


def _packed(mount: Mount) -> Iterator[bytes]:
    from perdure.cli.fcrun import _packing

    return _packing.packed(mount.source, mount.target.strip("/"), follow=True, keep_owner=True)

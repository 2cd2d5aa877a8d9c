"""Kernel modules: which files, in which order, unpacked, as the part of an initramfs that an init loads from.

``modules.dep`` (depmod(8)) has lines ``PATH: DEPENDENCY…`` in which the dependency that is needed first comes last.
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterable, Sequence
from pathlib import Path

from perdure.errors import Unsupported
from perdure.host.bzimage import unzstd
from perdure.host.cpio import Entry

SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


def module_name(path: str) -> str:
    """``kernel/drivers/net/virtio-net.ko.xz`` -> ``virtio_net``: the name as the kernel spells it."""
    name = path.rsplit("/", 1)[-1]
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            name = name[: -len(suffix)]
            break
    return name.replace("-", "_")


def load_order(wanted: Iterable[str], modules_dep: str, modules_builtin: str) -> list[str]:
    """The paths of the wanted modules and all that they need, each once, dependencies first; built-in ones left out.

    Raises Unsupported: the kernel has no such module; ``details["missing"]`` lists them all.
    """
    needs: dict[str, tuple[str, list[str]]] = {}
    for line in modules_dep.splitlines():
        path, _, dependencies = line.partition(":")
        needs[module_name(path)] = (path, dependencies.split())
    built_in = {module_name(line) for line in modules_builtin.split()}
    order: dict[str, None] = {}
    missing = []
    for name in map(module_name, wanted):
        if name in needs:
            path, needed = needs[name]
            order.update(dict.fromkeys([*reversed(needed), path]))
        elif name not in built_in:
            missing.append(name)
    if missing:
        raise Unsupported(f"the kernel has no module {', '.join(missing)}", missing=missing)
    return list(order)


def read_module(path: Path) -> bytes:
    """The ELF bytes of a module file, whichever way it is packed."""
    data = path.read_bytes()
    if path.suffix == ".zst":
        return unzstd(data)
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    return data


def entries(folder: Path, first: Sequence[str], later: Sequence[str] = ()) -> list[Entry]:
    """``mod/NAME.ko`` of each path below ``folder``; ``mod/order`` and ``mod/later``: file names in load order."""
    files = [Entry.file(f"mod/{_file_name(path)}", read_module(folder / path)) for path in (*first, *later)]
    lists = [("order", first), ("later", later)] if later else [("order", first)]
    for name, paths in lists:
        files.append(Entry.file(f"mod/{name}", "".join(f"{_file_name(path)}\n" for path in paths).encode()))
    return [Entry.folder("mod"), *files]


def _file_name(path: str) -> str:
    return f"{module_name(path)}.ko"

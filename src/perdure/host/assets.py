"""Everything that a microVM is made of, in this machine's cache: Firecracker, jailer, kernel, guestd, initramfs, pager,
collector.

The first ``ensure`` fetches and builds for about a minute; every later one compares sizes and times of change.
``recorded`` only looks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import Unavailable
from perdure.host import binaries, cpio, kernel, static_build
from perdure.host.machine import MachineKind, require_supported
from perdure.host.paths import Home
from perdure.host.progress import Progress, silent
from perdure.host.vault import Part, Vault, file_digest, open_vault

GUESTD, GUEST_INITRD = "guestd", "guest-initrd"
PAGER, COLLECTOR = "pager", "collector"
EMULATED_INIT, HOST_INITRD = "emulated-init", "host-initrd"


@dataclass(frozen=True)
class Assets:
    """Where the parts are, and which they are.

    ``digest`` (64 hex digits) covers all parts that a template depends on: Firecracker, vmlinux and the guest's
    initramfs (guestd and modules). ``host_initrd`` boots the emulated host, with the same vmlinux; ``host_init`` is the
    init in it, which also measures this machine's TSC (emulated_init.c). Both are None on aarch64. ``pager``
    serves page faults and ``collector`` makes one file of what a capture left; no template depends on them.
    """

    firecracker: Path
    jailer: Path
    vmlinux: Path
    guest_initrd: Path
    guestd: Path
    pager: Path
    collector: Path
    host_init: Path | None
    host_initrd: Path | None
    firecracker_version: str
    kernel_release: str
    digest: str


def ensure(home: Home, progress: Progress | None = None) -> Assets:
    """Find or fetch all assets; milliseconds when they are there.

    Raises Unsupported (not this machine), Unavailable (nothing to fetch from), AssetTampered, NoSpace, NoRights.
    """
    machine = require_supported()
    report = progress or silent
    with open_vault(home.cache) as vault:
        firecracker = binaries.ensure(vault, machine.architecture, report)
        linux = kernel.ensure(vault, machine, report)
        guestd = static_build.ensure_guestd(vault, machine.architecture, report)
        pager = static_build.ensure_pager(vault, machine.architecture, report)
        collector = static_build.ensure_collector(vault, machine.architecture, report)
        guest_initrd = _initrd(
            vault, GUEST_INITRD, guestd.files[GUESTD], guestd.digests[GUESTD], linux, "guest-modules.cpio"
        )
        host_init, host_initrd = _host_parts(vault, machine, linux, report)
    return _assets(firecracker, linux, guestd, guest_initrd, pager, collector, host_init, host_initrd)


def recorded(home: Home, *, thorough: bool = False) -> Assets | None:
    """The assets that are there, without fetching any; None when one is missing or older than this package.

    ``thorough`` hashes every file again. Raises AssetTampered that names the file.
    """
    machine = require_supported()
    if not home.cache.is_dir():
        return None
    with open_vault(home.cache) as vault:
        found = {name: vault.get(name, thorough=thorough) for name in vault.names()}
    firecracker, linux = found.get(binaries.PART), found.get(kernel.PART)
    guestd, guest_initrd = found.get(GUESTD), found.get(GUEST_INITRD)
    pager, collector = found.get(PAGER), found.get(COLLECTOR)
    if firecracker is None or linux is None or guestd is None or guest_initrd is None:
        return None
    if pager is None or collector is None:
        return None
    if guestd.key != static_build.guestd_key(machine.architecture):
        return None
    if pager.key != static_build.pager_key(machine.architecture):
        return None
    if collector.key != static_build.collector_key(machine.architecture):
        return None
    host_init, host_initrd = found.get(EMULATED_INIT), found.get(HOST_INITRD)
    return _assets(firecracker, linux, guestd, guest_initrd, pager, collector, host_init, host_initrd)


def _assets(
    firecracker: Part,
    linux: Part,
    guestd: Part,
    guest_initrd: Part,
    pager: Part,
    collector: Part,
    host_init: Part | None,
    host_initrd: Part | None,
) -> Assets:
    digest = hashlib.sha256()
    for part, name in ((firecracker, "firecracker"), (linux, "vmlinux"), (guest_initrd, "initrd.cpio")):
        digest.update(part.digests[name].encode())
    return Assets(
        firecracker=firecracker.files["firecracker"],
        jailer=firecracker.files["jailer"],
        vmlinux=linux.files["vmlinux"],
        guest_initrd=guest_initrd.files["initrd.cpio"],
        guestd=guestd.files["guestd"],
        pager=pager.files[PAGER],
        collector=collector.files[COLLECTOR],
        host_init=host_init.files[EMULATED_INIT] if host_init else None,
        host_initrd=host_initrd.files["initrd.cpio"] if host_initrd else None,
        firecracker_version=firecracker.facts["version"],
        kernel_release=linux.facts["release"],
        digest=digest.hexdigest(),
    )


def _host_parts(vault: Vault, machine: MachineKind, linux: Part, progress: Progress) -> tuple[Part | None, Part | None]:
    """The emulated host's init, and the initramfs with it."""
    if "host-modules.cpio" not in linux.files:
        return None, None
    init = static_build.ensure_emulated_init(vault, machine.architecture, progress)
    file, digest = init.files[EMULATED_INIT], init.digests[EMULATED_INIT]
    return init, _initrd(vault, HOST_INITRD, file, digest, linux, "host-modules.cpio")


def _initrd(vault: Vault, name: str, init: Path, init_digest: str, linux: Part, modules: str) -> Part:
    """``init`` as /init, followed by the kernel's modules. Not compressed: unpacking costs more than reading."""
    key = f"{init_digest} {linux.digests[modules]}"
    part = vault.get(name, key)
    if part is not None:
        return part
    if file_digest(init) != init_digest:
        raise Unavailable(f"{init} changed while it was packed", hint="Run the command again.")
    with vault.workshop() as workshop:
        made = workshop / "initrd.cpio"
        head = cpio.archive([cpio.Entry.file("init", init.read_bytes(), 0o755)])
        made.write_bytes(head + linux.files[modules].read_bytes())
        return vault.put(name, key, {}, {"initrd.cpio": made})

"""The newest cloud kernel of the distribution: of Debian ``linux-image-cloud-*``, of Ubuntu ``linux-image-virtual``.

apt checks the signature of what it downloads; nothing is installed. Kept from a package: the plain kernel, and as two
parts of initramfs the modules that a guest and the emulated host load.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from perdure.errors import Unavailable, Unsupported
from perdure.host import cpio, modules
from perdure.host.bzimage import plain_kernel
from perdure.host.machine import MachineKind
from perdure.host.progress import Progress
from perdure.host.vault import Part, Vault

PART = "kernel"
GUEST_MODULES = ("virtio_mmio", "virtio_blk", "virtio_net", "overlay", "squashfs", "vmw_vsock_virtio_transport")
# What machines' networks are made of (keeper/network.py), as the rules there name it.
NETWORK_MODULES = ("veth", "bridge", "nf_tables", "nft_ct", "nft_chain_nat", "nft_nat", "nft_masq", "nft_reject_ipv4")
HOST_MODULES = ("virtio_pci", "virtiofs", "overlay", "virtio_net")  # of the emulated host's root and card
HOST_LATER_MODULES = ("kvm-amd", "tun", "loop", *NETWORK_MODULES)  # loaded while its launcher starts
UNPACKED_BYTES = 700 << 20  # a package unpacked beside what is made from it; removed afterwards
APT_TIMEOUT_S = 900.0
META_PACKAGES = {
    ("debian", "x86_64"): "linux-image-cloud-amd64",
    ("debian", "aarch64"): "linux-image-cloud-arm64",
    ("ubuntu", "x86_64"): "linux-image-virtual",
    ("ubuntu", "aarch64"): "linux-image-virtual",
}


def ensure(vault: Vault, machine: MachineKind, progress: Progress) -> Part:
    """The recorded kernel, or the newest that apt offers. Facts: ``release``, ``package``.

    Files: ``vmlinux``, ``guest-modules.cpio`` and, on x86-64, ``host-modules.cpio``.
    Raises Unavailable (no apt, no such package), Unsupported (a kernel without what a guest needs), NoSpace.
    """
    lists = (GUEST_MODULES, HOST_MODULES, HOST_LATER_MODULES)
    key = " | ".join((machine.architecture, *(" ".join(names) for names in lists)))
    part = vault.get(PART, key)
    if part is not None:
        return part
    vault.require_space(UNPACKED_BYTES)
    with vault.workshop() as workshop:
        package = _newest_package(machine)
        release = package.removeprefix("linux-image-")
        root = workshop / "root"
        _fetch([package, *_modules_packages(package)], workshop, root, progress)
        progress(f"unpacking the kernel {release}", 0, 0)
        facts = {"release": release, "package": package}
        try:
            made = _make(root, release, workshop, machine)
        except Unsupported as error:
            extra = f"linux-modules-extra-{release}"  # where Ubuntu keeps the rarer modules
            if not error.details.get("missing") or not _apt_knows(extra):
                raise
            _fetch([extra], workshop, root, progress)
            made = _make(root, release, workshop, machine)
        part = vault.put(PART, key, facts, made)
        progress(f"unpacking the kernel {release}", 1, 1)
        return part


def _make(root: Path, release: str, workshop: Path, machine: MachineKind) -> dict[str, Path]:
    folder = _module_folder(root, release)
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}  # not every user's has them
    subprocess.run(["depmod", "-b", root, release], check=True, capture_output=True, env=environment)
    dependencies = (folder / "modules.dep").read_text()
    built_in = (folder / "modules.builtin").read_text()

    def order(wanted: Sequence[str]) -> list[str]:
        return modules.load_order(wanted, dependencies, built_in)

    made = {"guest-modules.cpio": workshop / "guest-modules.cpio"}
    made["guest-modules.cpio"].write_bytes(cpio.archive(modules.entries(folder, order(GUEST_MODULES))))
    if machine.architecture == "x86_64":
        first, whole = order(HOST_MODULES), order((*HOST_MODULES, *HOST_LATER_MODULES))
        later = [path for path in whole if path not in first]
        made["host-modules.cpio"] = workshop / "host-modules.cpio"
        made["host-modules.cpio"].write_bytes(cpio.archive(modules.entries(folder, first, later)))
    made["vmlinux"] = workshop / "vmlinux"
    made["vmlinux"].write_bytes(plain_kernel((root / "boot" / f"vmlinuz-{release}").read_bytes()))
    return made


def _module_folder(root: Path, release: str) -> Path:
    """Packages have lib/modules or usr/lib/modules, and depmod looks in one of them: make both names lead there."""
    for name, other in (("lib/modules", "usr/lib/modules"), ("usr/lib/modules", "lib/modules")):
        if not (root / name).exists() and (root / other).is_dir():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to((root / other).absolute())
    folder = root / "lib/modules" / release
    if not folder.is_dir():
        raise Unsupported(f"the kernel packages hold no modules for {release}", missing=["all"])
    return folder


def _newest_package(machine: MachineKind) -> str:
    """The package that the distribution's meta package stands for now."""
    meta = META_PACKAGES.get((machine.distribution, machine.architecture))
    if meta is None or shutil.which("apt-get") is None:
        raise Unavailable(
            f"no known kernel package for {machine.distribution} on {machine.architecture}",
            hint="Use Debian or Ubuntu, whose cloud kernels are fetched with apt.",
        )
    found = _dependencies(meta, r"linux-image-\d\S*")
    if not found and os.geteuid() == 0:
        _apt(["apt-get", "update", "-q"])  # a fresh machine has no package lists
        found = _dependencies(meta, r"linux-image-\d\S*")
    if not found:
        raise Unavailable(f"apt knows no package {meta}", hint="Run as root: apt-get update")
    return found[0]


def _modules_packages(package: str) -> list[str]:
    """Ubuntu has the modules in a package of their own; in Debian they are with the kernel."""
    return _dependencies(package, r"linux-modules-\d\S*")


def _dependencies(package: str, pattern: str) -> list[str]:
    done = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True, check=False)
    return re.findall(rf"^\s*\|?Depends: ({pattern})$", done.stdout, re.MULTILINE)


def _apt_knows(package: str) -> bool:
    done = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
    return done.returncode == 0 and bool(done.stdout)


def _fetch(packages: Sequence[str], workshop: Path, root: Path, progress: Progress) -> None:
    """Download packages with apt and unpack them into root. Raises Unavailable."""
    try:
        _download(packages, workshop, progress)
    except Unavailable:
        if os.geteuid() != 0:
            raise
        _apt(["apt-get", "update", "-q"])  # the lists named a version that the mirrors have replaced
        _download(packages, workshop, progress)
    for archive in workshop.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, root], check=True, capture_output=True)
        archive.unlink()


def _download(packages: Sequence[str], workshop: Path, progress: Progress) -> None:
    total = sum(_size_bytes(package) for package in packages)
    what = f"kernel {packages[0].removeprefix('linux-image-')}"
    # Without _apt's sandbox: that user may not enter root's cache folder. apt checks the hash all the same.
    command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *packages]
    with (workshop / "apt.log").open("wb") as log:
        apt = subprocess.Popen(command, cwd=workshop, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while True:
            try:
                apt.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                progress(what, sum(path.stat().st_size for path in workshop.glob("*.deb")), total)
            except BaseException:
                apt.kill()
                apt.wait()
                raise
    if apt.returncode != 0:
        lines = (workshop / "apt.log").read_text(errors="replace").strip().splitlines() or ["no message"]
        raise Unavailable(f"apt-get download of {' '.join(packages)} failed: {lines[-1]}", hint="Check the network.")
    progress(what, total, total)


def _size_bytes(package: str) -> int:
    show = ["apt-cache", "show", "--no-all-versions", package]
    match = re.search(r"^Size: (\d+)$", subprocess.run(show, capture_output=True, text=True).stdout, re.MULTILINE)
    return int(match[1]) if match else 0


def _apt(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=APT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command)} took longer than {APT_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(command)} failed: {done.stderr.strip()[-400:]}", hint="Check the network.")

"""The emulated host: QEMU's TCG emulating a processor with AMD SVM, so that KVM and Firecracker run unmodified in it.

    this machine                                    the emulated host (see emulated_init.c)
    / (read-only)   -- virtiofsd, virtiofs "root" -> the lower layer of its root, a tmpfs over it
    HOME            -- virtiofsd, virtiofs "home" -> the same absolute path, writable, seen by both
    127.0.0.1:PORT  -- QEMU's user network        -> LAUNCHER_PORT
    a tap           -- the line's own card        -> the same, far quicker (linecard.py)

    HOME/host/{qemu,virtiofsd-root,virtiofsd-home}.process   who the pieces are (processes.py)
    HOME/host/console.log                                    its console, with the launcher's own output
    HOME/host/{qemu,virtiofsd-root,virtiofsd-home}.log       what the pieces say

The kernel is entered directly (QEMU loads the ELF vmlinux and starts it through PVH): nothing is decompressed and no
boot loader runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import MachineFailed, Unsupported
from perdure.host import cpio, linecard
from perdure.host.assets import Assets
from perdure.host.linecard import LineCard, local_addresses
from perdure.host.machine import require_supported
from perdure.host.paths import Home
from perdure.host.processes import ProcessFile, last_lines, start_detached
from perdure.host.virtiofs import Virtiofsd

QEMU = "qemu-system-x86_64"
INSTALL_HINT = "apt-get install qemu-system-x86 qemu-system-common (on Debian 13 and Ubuntu also: virtiofsd)"
LAUNCHER_PORT = 4752  # inside
ADDRESS, NETMASK, GATEWAY = "10.0.2.15", "255.255.255.0", "10.0.2.2"  # of QEMU's user network
NETWORK = "10.0.2.0/24"  # machines must not reach it: its GATEWAY is this machine's own loopback
NAME_SERVER = "10.0.2.3"  # asks those of this machine
MEMORY_MAX_BYTES = 8 << 30  # given out page by page, as it is touched
PROCESSORS_MAX = 4  # for machines
# Without ERMS and FSRM the kernel copies eight bytes at a time, where TCG takes one by one: docs/design/0003.
PROCESSOR = "EPYC-Milan,svm=on,erms=off,fsrm=off"
# A kernel takes 2 to 10 seconds to its init. One of some thousand never came there and said nothing (docs/design/0003):
# such a one is ended, and started once more.
HUNG_AFTER_S = 45.0
BOOT_TIMEOUT_S = 120.0
SHOWN_FROM_S = 0.1  # a thread that worked less did nothing that a message should name
SHARE_TIMEOUT_S = 10.0
TSC_TIMEOUT_S = 10.0
POLL_S = 0.03
REMOVED = " (deleted)"  # behind the path of an open file, in /proc/PID/fd
STARTED, NETWORK_UP = b"init: started", b"init: root and network are up"  # on the console (emulated_init.c)
PIECES = ("qemu", "virtiofsd-root", "virtiofsd-home")
# Its one user is root on this machine, so what protects a kernel from its users is left out where it costs time.
KERNEL_ARGUMENTS = (
    "console=ttyS0 panic=-1 reboot=t quiet mitigations=off init_on_alloc=0 audit=0 apparmor=0 lsm= nowatchdog "
    "8250.nr_uarts=1 cryptomgr.notests rcupdate.rcu_expedited=1 randomize_kstack_offset=off "
    "tsc=reliable"  # QEMU's is the host's; without the word Linux reads the HPET for every look at the clock
)

_log = logging.getLogger(__name__)


class _HungError(MachineFailed):
    """It lives, and does not come further."""


@dataclass(frozen=True)
class BootTimes:
    """How long a start took, in seconds."""

    kernel_s: float  # the kernel's own: from the start of QEMU to init
    launcher_s: float  # from the start of the first process to a launcher that answers


class EmulatedHost:
    """The one emulated host of a home. Callers hold the host folder's lock (below.py)."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._folder = home.host
        self._files = {name: ProcessFile(self._folder / f"{name}.process") for name in PIECES}
        self.console = self._folder / "console.log"

    def pids(self) -> dict[str, int]:
        """The pieces that live."""
        names = {piece: file.read() for piece, file in self._files.items()}
        return {piece: name.pid for piece, name in names.items() if name is not None}

    def start(
        self,
        assets: Assets,
        port: int,
        card: LineCard | None,
        launcher: Sequence[str],
        environment: Mapping[str, str],
        answers: Callable[[], bool],
    ) -> BootTimes:
        """Start all pieces and wait until ``answers()``. What lived of an earlier one is ended first.

        ``launcher`` is the command that init runs, and runs again when it ends; 127.0.0.1:``port`` and ``card`` lead to
        its ``LAUNCHER_PORT``. Raises Unsupported (no QEMU or virtiofsd here), MachineFailed (it ended or did not answer
        in time, with the console's last lines).
        """
        qemu, virtiofsd = find_programs()
        if assets.host_init is None or assets.host_initrd is None:
            raise Unsupported("the emulated host runs on x86-64 only", hint="Use a machine with KVM.")
        initrd = assets.host_initrd.read_bytes() + _configuration(self._home, card, launcher, environment)
        began = time.monotonic()
        try:
            try:
                kernel_s = self._boot(qemu, virtiofsd, assets, initrd, port, card, HUNG_AFTER_S)
            except _HungError as error:
                _log.warning("%s: it is started once more", error.message)
                kernel_s = self._boot(qemu, virtiofsd, assets, initrd, port, card, BOOT_TIMEOUT_S)
            self._wait(lambda: self._said(NETWORK_UP), "its init does not finish", BOOT_TIMEOUT_S)
            self._wait(answers, "its launcher does not answer", BOOT_TIMEOUT_S)
            return BootTimes(round(kernel_s, 3), round(time.monotonic() - began, 3))
        except BaseException:
            self.stop()
            raise

    def _boot(
        self,
        qemu: Path,
        virtiofsd: Virtiofsd,
        assets: Assets,
        initrd: bytes,
        port: int,
        card: LineCard | None,
        timeout_s: float,
    ) -> float:
        """Start all pieces, until the kernel starts init; how long the kernel took, in seconds."""
        self.stop()
        archive = self._folder / "initrd.cpio"
        archive.write_bytes(initrd)
        self.console.write_bytes(b"")
        for name, folder in (("root", Path("/")), ("home", self._home.root)):
            log = self._folder / f"virtiofsd-{name}.log"
            start_detached(virtiofsd.command(folder, self._socket(name)), log, self._files[f"virtiofsd-{name}"])
        assert assets.host_init is not None  # looked at by start
        frequency = tsc_khz(assets.host_init)  # while the shares come up
        self._wait_for_shares()
        command = self._qemu_command(qemu, assets.vmlinux, archive, port, card, frequency)
        keep = () if card is None else (card.fd,)
        start_detached(command, self._folder / "qemu.log", self._files["qemu"], keep=keep)
        powered_on = time.monotonic()
        self._wait(lambda: self._said(STARTED), "its kernel does not start init", timeout_s)
        return time.monotonic() - powered_on

    def stop(self) -> bool:
        """End every piece and remove what they leave, but the logs. False: none lived."""
        found = [file.end() for file in self._files.values()]  # QEMU first: then the shares end by themselves
        leftovers = [self._folder / "initrd.cpio"]
        for share in ("root", "home"):
            path = self._socket(share)
            leftovers += [path, path.with_name(path.name + ".pid")]
        for path in leftovers:
            path.unlink(missing_ok=True)
        return any(found)

    def removed(self) -> list[str]:
        """What was removed from the home on this side, and takes its room still: the emulated kernel remembers the
        name, so virtiofsd keeps the file open, until somebody in there looks at that name again."""
        name = self._files["virtiofsd-home"].read()
        if name is None:
            return []
        root = self._home.root.resolve()  # as the kernel has it
        found = []
        try:
            links = list(Path(f"/proc/{name.pid}/fd").iterdir())
        except OSError:
            return []  # it ends in this moment
        for link in links:
            with contextlib.suppress(OSError):  # that one was closed meanwhile
                path, mark, _ = str(link.readlink()).rpartition(REMOVED)
                if mark and Path(path).is_relative_to(root):
                    found.append(str(self._home.root / Path(path).relative_to(root)))
        return found

    def _said(self, line: bytes) -> bool:
        return line in self.console.read_bytes()

    def _wait_for_shares(self) -> None:
        deadline = time.monotonic() + SHARE_TIMEOUT_S
        for share in ("root", "home"):
            while not self._socket(share).exists():
                if self._files[f"virtiofsd-{share}"].read() is None or time.monotonic() > deadline:
                    log = self._folder / f"virtiofsd-{share}.log"
                    raise MachineFailed(f"virtiofsd does not start: {last_lines(log)}", hint=f"See {log}")
                time.sleep(POLL_S)

    def _socket(self, share: str) -> Path:
        return self._home.socket(f"virtiofs-{share}")

    def _wait(self, done: Callable[[], bool], what: str, timeout_s: float) -> None:
        began = time.monotonic()
        while not done():
            name = self._files["qemu"].read()
            if name is None:
                raise MachineFailed(
                    f"the emulated host ended while it started: {last_lines(self._folder / 'qemu.log')}; "
                    f"its console: {last_lines(self.console)}",
                    hint=f"See {self._folder}/qemu.log and {self.console}",
                )
            if time.monotonic() - began > timeout_s:
                raise _HungError(
                    f"the emulated host: {what} within {timeout_s:.0f} s, in which {_worked(name.pid)}; "
                    f"its console: {last_lines(self.console)}",
                    hint=f"See {self.console}",
                )
            time.sleep(POLL_S)

    def _qemu_command(
        self, qemu: Path, vmlinux: Path, initrd: Path, port: int, card: LineCard | None, frequency: int
    ) -> list[str]:
        memory = min(MEMORY_MAX_BYTES, _memory_bytes() // 2) >> 20 << 20
        command = [
            str(qemu),
            "-name",
            f"perdure-{self._home.tag}",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ]
        command += ["-M", "q35,memory-backend=memory"]
        command += ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", PROCESSOR]
        command += ["-smp", str(1 + len(machine_processors()))]
        command += ["-m", str(memory >> 20)]
        command += ["-object", f"memory-backend-memfd,id=memory,size={memory},share=on"]
        arguments = f"{KERNEL_ARGUMENTS} tsc_early_khz={frequency}"
        command += ["-kernel", str(vmlinux), "-initrd", str(initrd), "-append", arguments]
        command += ["-chardev", f"file,id=console,path={_escaped(self.console)}", "-serial", "chardev:console"]
        for share in ("root", "home"):
            command += ["-chardev", f"socket,id={share},path={_escaped(self._socket(share))}"]
            command += ["-device", f"vhost-user-fs-pci,chardev={share},tag={share}"]
        forward = f"hostfwd=tcp:127.0.0.1:{port}-{ADDRESS}:{LAUNCHER_PORT}"
        command += ["-netdev", f"user,id=net,ipv6=off,{forward}", "-device", "virtio-net-pci,netdev=net,romfile="]
        if card is not None:
            command += ["-netdev", f"tap,id=line,fd={card.fd}", "-device", "virtio-net-pci,netdev=line,romfile="]
        return [*command, "-no-reboot", "-monitor", "none"]


def machine_processors() -> range:
    """The emulated processors on which machines run: as many as this machine has, without the first.

    The first one must run no guest. Each time any processor loads a state of the x87 unit (FXRSTOR, XRSTOR: at nearly
    every switch of tasks), QEMU 7.2 reads and writes back a word of the first one's state (``cpu_clear_ignne``:
    ``hflags2``), without a lock. Where that one enters or leaves a guest in the same moment, it forgets that it did.
    """
    return range(1, 1 + min(PROCESSORS_MAX, os.cpu_count() or 1))


def guarded() -> list[str]:
    """What no machine reaches: QEMU's network, where this machine's loopback is, the cards of lines, and this machine's
    own addresses of now, which QEMU would connect to as any program here does."""
    own = [f"{address}/32" for address in local_addresses() if not address.startswith("127.")]
    return [NETWORK, str(linecard.NETWORK), *dict.fromkeys(own)]


def find_programs() -> tuple[Path, Virtiofsd]:
    """QEMU and virtiofsd of this machine. Raises Unsupported with how to install them."""
    machine = require_supported()
    if machine.architecture != "x86_64":
        raise Unsupported(
            f"KVM is not usable here, and the emulated host runs on x86_64 only (this is {machine.architecture})",
            hint="Use a machine whose /dev/kvm works.",
        )
    qemu = shutil.which(QEMU)
    virtiofsd = Virtiofsd.find()
    if qemu is None or virtiofsd is None:
        absent = " and no ".join(name for name, found in ((QEMU, qemu), ("virtiofsd", virtiofsd)) if found is None)
        raise Unsupported(
            f"KVM is not usable here, and there is no {absent} for the emulated host", hint=f"Run: {INSTALL_HINT}"
        )
    return Path(qemu), virtiofsd


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _configuration(home: Home, card: LineCard | None, launcher: Sequence[str], environment: Mapping[str, str]) -> bytes:
    """An archive with /config (emulated_init.c), to be appended to the initramfs."""
    records = [f"share=home {home.root}", f"address={ADDRESS}", f"netmask={NETMASK}", f"gateway={GATEWAY}"]
    if card is not None:
        records += [f"line={card.there}", f"line-netmask={linecard.NETMASK}"]
    records += [f"env={name}={value}" for name, value in environment.items()]
    records += [f"arg={word}" for word in launcher]
    data = b"".join(os.fsencode(record) + b"\0" for record in records)
    return cpio.archive([cpio.Entry.file("config", data, 0o600)])


def tsc_khz(init: Path) -> int:
    """The frequency of this machine's TSC, in kHz, which QEMU gives to the emulated processors as it is.

    Left to itself, the emulated kernel calibrates it at each boot, with an error of up to 500 ppm on a busy machine;
    and Firecracker refuses a snapshot that was made at a frequency more than 250 ppm away.
    """
    try:
        done = subprocess.run([init, "tsc-khz"], capture_output=True, text=True, timeout=TSC_TIMEOUT_S, check=True)
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise MachineFailed(f"the frequency of this machine's TSC cannot be measured: {error}") from None


def _worked(pid: int) -> str:
    """Which threads of a process used a processor, for a message: one that spins is told from one that waits."""
    found = []
    for path in sorted(Path(f"/proc/{pid}/task").glob("*/stat")):
        with contextlib.suppress(OSError):  # it ended in this moment
            words = path.read_text()
            used = sum(map(int, words[words.rindex(")") + 2 :].split()[11:13])) / os.sysconf("SC_CLK_TCK")
            if used >= SHOWN_FROM_S:
                found.append(f"'{words[words.index('(') + 1 : words.rindex(')')]}' worked for {used:.1f} s")
    return ", ".join(found) or "none of its threads worked"


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _escaped(path: Path) -> str:
    """In QEMU's option lists a comma is written twice."""
    return str(path).replace(",", ",,")

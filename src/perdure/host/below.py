"""The launcher below the dotted line: here where KVM works, in the emulated host where it does not.

HOME/host/lock              held while something is started or stopped
HOME/host/state.json        how the launcher is reached, and how its start went
HOME/host/token             what it asks of every connection (mode 0600)
HOME/host/launcher.process  who it is, where it runs on this machine itself (processes.py); launcher.log
"""

from __future__ import annotations

import compileall
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from perdure.errors import InvalidValue, MachineFailed, PerdureError
from perdure.host import kvm, linecard
from perdure.host.assets import Assets
from perdure.host.emulated import (
    LAUNCHER_PORT,
    PIECES,
    EmulatedHost,
    find_programs,
    free_port,
    guarded,
    machine_processors,
)
from perdure.host.machine import boot_id, require_root
from perdure.host.paths import Home
from perdure.host.processes import ProcessFile, ProcessName, last_lines, start_detached
from perdure.host.progress import Progress, silent
from perdure.host.vault import write_durably
from perdure.keeper import hostnetwork, line
from perdure.linux import cgroup
from perdure.model import LauncherAddress

PACKAGE = Path(__file__).resolve().parents[1]
MACHINES_FILE = "/dev/perdure-kvm"  # emulated_init.c makes it once KVM is loaded and a VM is held
SOURCES = ("errors.py", "keeper", "linux", "formats", "execution/machine", "execution/snapshots")  # runs below the line
START_TIMEOUT_S = 20.0
PING_TIMEOUT_S = 5.0  # a launcher that imports is silent for a while; where nobody listens the answer is at once
HANGS_AFTER_S = 30.0  # after so long nothing comes any more: all that it holds is given up
POLL_S = 0.03
CGROUP_TIMEOUT_S = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BelowStatus:
    """What runs below the line for one home. Times in seconds; 0.0 where they are not known."""

    running: bool
    answers: bool
    emulated: bool
    address: LauncherAddress | None = None
    pids: dict[str, int] = field(default_factory=dict)
    keepers: int = 0
    uptime_s: float = 0.0
    kernel_boot_s: float = 0.0  # the emulated host's kernel: from the start of QEMU to init
    launcher_boot_s: float = 0.0  # from the start to a launcher that answers
    outdated: bool = False  # the package below the line or the assets changed since it was started


@dataclass(frozen=True)
class _State:
    boot_id: str
    emulated: bool
    tcp_port: int
    unix_path: str
    fingerprint: str
    started: float
    kernel_boot_s: float
    launcher_boot_s: float
    tcp_host: str = "127.0.0.1"


def ensure(home: Home, assets: Assets, progress: Progress | None = None) -> LauncherAddress:
    """Start what is missing and give the address of a launcher that answers. Idempotent; two callers start one.

    A launcher that died on this machine itself is replaced without its machines. One that was started from an older
    package or kernel is started again, unless machines run in it.
    Raises NoRights, Unsupported (neither KVM nor what the emulated host needs), MachineFailed.
    """
    require_root("running microVMs")
    home.make()
    fingerprint = _fingerprint(assets)
    address = _usable(home, fingerprint)
    if address is not None:
        return address
    report = progress or silent
    with _lock(home):
        address = _usable(home, fingerprint)  # another starter was first
        if address is not None:
            return address
        state = _read_state(home)
        is_here = kvm.boots(home, assets, report)
        if is_here and state is not None and not state.emulated:
            _launcher_file(home).end()  # its keepers and their machines live on: the next one finds them
            home.socket("launcher").unlink(missing_ok=True)
        else:
            _stop(home)
        for name in SOURCES:  # below the line, compiling would take forty times as long
            compileall.compile_dir(PACKAGE / name, quiet=2) if (PACKAGE / name).is_dir() else None
        if is_here:
            return _start_here(home, fingerprint)
        return _start_emulated(home, assets, fingerprint, report)


def stop(home: Home) -> bool:
    """End the launcher and the emulated host, with all machines in them. False: nothing ran."""
    if not home.host.is_dir():
        return False
    with _lock(home):
        return _stop(home)


def status(home: Home, assets: Assets | None = None, *, timeout_s: float = PING_TIMEOUT_S) -> BelowStatus:
    """What runs now, without starting anything; ``outdated`` is told only when the assets are given.

    timeout_s: how long a launcher whose processes live may be silent before it counts as one that does not answer.
    """
    state = _read_state(home)
    pids = _pids(home)
    if state is None:
        return BelowStatus(running=bool(pids), answers=False, emulated="qemu" in pids, pids=pids)
    address = _address(home, state)
    pong = _pong(home, address, timeout_s) if _whole(state, pids) else None
    return BelowStatus(
        running=bool(pids),
        answers=pong is not None,
        emulated=state.emulated,
        address=address,
        pids=pids,
        keepers=int(pong.get("keepers", 0)) if pong else 0,
        uptime_s=time.time() - state.started if pids else 0.0,
        kernel_boot_s=state.kernel_boot_s,
        launcher_boot_s=state.launcher_boot_s,
        outdated=assets is not None and state.fingerprint != _fingerprint(assets),
    )


def removed(home: Home) -> list[str]:
    """Paths in the home whose files are gone here, and are held open for an emulated host that remembers them."""
    return EmulatedHost(home).removed()


def ping(address: LauncherAddress, timeout_s: float = PING_TIMEOUT_S) -> dict[str, Any] | None:
    """What the launcher answers to a ping: {pid, version, python, keepers}. None: it does not answer in time."""
    hello = {"op": "hello", "version": line.VERSION, "token": address.token, "want": "ping"}
    decoder = line.Decoder()
    try:
        with _connect(address, timeout_s) as connection:
            connection.sendall(line.encode_control(hello))
            while data := connection.recv(65536):
                for _, payload in decoder.feed(data):
                    answer = line.decode_control(payload).get("ok")
                    return answer if isinstance(answer, dict) else None
    except (OSError, PerdureError):
        return None
    return None


def _pong(home: Home, address: LauncherAddress, timeout_s: float) -> dict[str, Any] | None:
    """The same of a home's launcher, whose card may have to be mended first."""
    pong = ping(address, timeout_s)
    if pong is None and linecard.mend(home, address.tcp_host):
        _log.warning("the network card of the line to the emulated host was taken away: it is there again")
        pong = ping(address, timeout_s)
    return pong


def _connect(address: LauncherAddress, timeout_s: float) -> socket.socket:
    if address.unix_path:
        connection = socket.socket(socket.AF_UNIX)
        target: Any = address.unix_path
    else:
        connection = socket.socket(socket.AF_INET)
        target = (address.tcp_host, address.tcp_port)
    try:
        connection.settimeout(timeout_s)
        connection.connect(target)
    except BaseException:
        connection.close()
        raise
    return connection


def _usable(home: Home, fingerprint: str) -> LauncherAddress | None:
    """The address of a launcher that answers and is not outdated (or must be kept, because machines run)."""
    state = _read_state(home)
    if state is None or not _whole(state, _pids(home)):
        return None
    address = _address(home, state)
    pong = _pong(home, address, HANGS_AFTER_S)
    if pong is None or (state.fingerprint != fingerprint and not pong.get("keepers")):
        return None
    return address


def _start_here(home: Home, fingerprint: str) -> LauncherAddress:
    socket_path = home.socket("launcher")
    log = home.host / "launcher.log"
    file = _launcher_file(home)
    token = _new_token(home)
    address = LauncherAddress(token=token, unix_path=str(socket_path))
    began = time.monotonic()
    start_detached(_launcher_command(home, ["--unix", str(socket_path)]), log, file, _launcher_environment())
    while ping(address) is None:
        if file.read() is None or time.monotonic() - began > START_TIMEOUT_S:
            file.end()
            raise MachineFailed(f"the launcher does not start: {last_lines(log)}", hint=f"See {log}")
        time.sleep(POLL_S)
    _write_state(home, _state(address, fingerprint, 0.0, time.monotonic() - began))
    return address


def _start_emulated(home: Home, assets: Assets, fingerprint: str, progress: Progress) -> LauncherAddress:
    find_programs()
    what = "starting the emulated host"
    progress(what, 0, 0)
    address = LauncherAddress(token=_new_token(home), tcp_port=free_port(), emulated=True)
    listen = ["--tcp", str(LAUNCHER_PORT), "--after", MACHINES_FILE]
    listen += ["--processors", ",".join(map(str, machine_processors())), "--guard", ",".join(guarded())]
    card = linecard.open_card(home)
    try:
        times = EmulatedHost(home).start(
            assets,
            address.tcp_port,
            card,
            _launcher_command(home, listen),
            _launcher_environment(),
            lambda: ping(address) is not None,
        )
    finally:
        if card is not None:
            card.close()
    if card is not None:
        direct = replace(address, tcp_host=card.there, tcp_port=LAUNCHER_PORT)
        if ping(direct) is not None:
            address = direct
        else:
            _log.warning("nothing comes through the line's own network card (a firewall?): it goes by a forwarded port")
    _write_state(home, _state(address, fingerprint, times.kernel_s, times.launcher_s))
    progress(what, 1, 1)
    return _with_process(home, address)


def _launcher_command(home: Home, listen: list[str]) -> list[str]:
    """Everything that the interpreter does by itself is left out (``site``, ``runpy``, the search for its home): in
    the emulated host that would cost as much as the launcher does. Its path is the standard library, then ours."""
    packages = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    program = "import sys; sys.path += %r; from perdure.keeper.launcher import main; main(sys.argv[1:])"
    words = ["-S", "-P", "-c", program % [str(PACKAGE.parent), *packages], *listen]
    return [_interpreter(), *words, "--token-file", str(_token_file(home)), "--below", str(home.below_line_folder)]


def _interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return str(Path(sys.executable).resolve())


def _launcher_environment() -> dict[str, str]:
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": os.environ.get("HOME", "/"),
        "LC_ALL": "C.UTF-8",
        "PYTHONHOME": f"{sys.base_prefix}{os.pathsep}{sys.base_exec_prefix}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _stop(home: Home) -> bool:
    ran = EmulatedHost(home).stop()
    launcher = _launcher_file(home)
    if launcher.read() is not None or home.below_line_folder.is_dir():
        ran = _end_keepers(home) or ran
    ran = launcher.end() or ran
    _remove_cgroups(home)
    _remove_bridges(home)
    shutil.rmtree(home.below_line_folder, ignore_errors=True)
    for path in (_state_file(home), _token_file(home), home.socket("launcher")):
        path.unlink(missing_ok=True)
    return ran


def _end_keepers(home: Home) -> bool:
    """End the keepers on this machine itself; their Firecrackers and pagers die with them."""
    found = False
    for control in home.below_line_folder.glob("m/*/keeper.sock"):
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(control))
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            keeper = ProcessName.of(struct.unpack("3i", credentials)[0])
            if keeper is not None:
                keeper.end()
                found = True
    return found


def _remove_bridges(home: Home) -> None:
    """What the networks of the home have left on this machine itself."""
    if not home.networks.is_dir() or os.geteuid() != 0:
        return
    for path in home.networks.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, InvalidValue):
            hostnetwork.remove_bridge(f"pd{json.loads(path.read_text())['id']}")


def _remove_cgroups(home: Home) -> None:
    """What is left in and of the cgroups that the launcher made for its keepers."""
    parent = Path(cgroup.ROOT) / f"perdure-{home.below_line_folder.name}"
    left = [cgroup.Cgroup(str(path.parent)) for path in parent.glob("*/cgroup.procs")]
    deadline = time.monotonic() + CGROUP_TIMEOUT_S
    while left and time.monotonic() < deadline:
        for group in left:
            group.kill()
        left = [group for group in left if not group.remove()]
        time.sleep(POLL_S if left else 0)
    cgroup.Cgroup(str(parent)).remove()


def _pids(home: Home) -> dict[str, int]:
    pids = EmulatedHost(home).pids()
    launcher = _launcher_file(home).read()
    return pids if launcher is None else {**pids, "launcher": launcher.pid}


def _whole(state: _State, pids: dict[str, int]) -> bool:
    """Whether every piece lives: an emulated host that lost a share may still answer, but serves nobody."""
    return set(pids) >= (set(PIECES) if state.emulated else {"launcher"})


def _fingerprint(assets: Assets) -> str:
    """Changes with the kernel, the emulated host's init, the interpreter and the sources that run below the line."""
    digest = hashlib.sha256(f"{assets.vmlinux} {assets.host_initrd} {sys.executable} {sys.version}".encode())
    for name in SOURCES:
        source = PACKAGE / name
        for path in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            found = path.stat()
            digest.update(f"{path} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _state(address: LauncherAddress, fingerprint: str, kernel_s: float, launcher_s: float) -> _State:
    started = time.time() - launcher_s
    place = (address.emulated, address.tcp_port, address.unix_path)
    times = (round(kernel_s, 3), round(launcher_s, 3))
    return _State(boot_id(), *place, fingerprint, started, *times, address.tcp_host)


def _address(home: Home, state: _State) -> LauncherAddress:
    try:
        token = _token_file(home).read_text().strip()
    except FileNotFoundError:
        token = ""
    address = LauncherAddress(token, state.unix_path, state.tcp_port, state.emulated, state.tcp_host)
    return _with_process(home, address) if state.emulated else address


def _with_process(home: Home, address: LauncherAddress) -> LauncherAddress:
    return replace(address, process=EmulatedHost(home).pids().get("qemu", 0))


def _new_token(home: Home) -> str:
    token = secrets.token_hex(32)
    write_durably(_token_file(home), token.encode(), 0o600)
    return token


def _read_state(home: Home) -> _State | None:
    """What the starter wrote down in this boot of the machine."""
    try:
        state = _State(**json.loads(_state_file(home).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return state if state.boot_id == boot_id() else None


def _write_state(home: Home, state: _State) -> None:
    write_durably(_state_file(home), json.dumps(asdict(state)).encode())


def _state_file(home: Home) -> Path:
    return home.host / "state.json"


def _token_file(home: Home) -> Path:
    return home.host / "token"


def _launcher_file(home: Home) -> ProcessFile:
    return ProcessFile(home.host / "launcher.process")


@contextlib.contextmanager
def _lock(home: Home) -> Iterator[None]:
    descriptor = os.open(home.host / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

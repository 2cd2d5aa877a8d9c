"""What sandboxes use now, and what runs in them: for ``stats`` and ``top``."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from perdure.errors import PerdureError, ProtocolError
from perdure.execution.guest.tree import GuestProcess, GuestProcesses
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.formats.usagereport import GuestUsage
from perdure.model import SandboxProcess, SandboxUsage
from perdure.model import SandboxState as S

PATIENCE_S = 2.0  # for a guest or keeper that is too busy to answer: the others are shown without it
TICKS = 100  # of USER_HZ in a second, on every architecture (proc_pid_stat(5))
PAGE_BYTES = 4096
PASSWD_BYTES_MAX = 1 << 20
_PTS_MAJORS = range(136, 144)  # Unix98 terminals (devices.txt of the kernel)
_TTY_MAJOR, _SERIAL_FIRST = 4, 64

_log = logging.getLogger(__name__)


async def usage_of(sandbox: Sandbox) -> SandboxUsage:
    """Two questions, to its keeper and its guest, and no process started for it."""
    info, spec = sandbox.info(), sandbox.record.spec
    usage: dict[str, Any] = {}
    if sandbox.state in (S.RUNNING, S.PAUSED):
        below, guest = await asyncio.gather(_below(sandbox), _guest(sandbox))
        usage = {
            "vcpus": spec.vcpus,
            "memory_limit_bytes": spec.memory_mib << 20,
            "cpu_s": float(below.get("cpu_s", 0.0)),
            "host_bytes": int(below.get("memory_bytes", 0)),
        }
        if guest is not None:
            usage |= {
                "memory_bytes": guest.used_bytes,
                "received_bytes": guest.received_bytes,
                "sent_bytes": guest.sent_bytes,
                "read_bytes": guest.read_bytes,
                "written_bytes": guest.written_bytes,
                "threads": guest.threads,
            }
    return SandboxUsage(
        id=info.id, name=info.name, state=info.state, time=time.time(), stored_bytes=info.stored_bytes, **usage
    )


async def _below(sandbox: Sandbox) -> dict[str, Any]:
    try:
        async with asyncio.timeout(PATIENCE_S):
            found = (await sandbox.need_machine().request("stat")).get("usage")
    except (PerdureError, TimeoutError) as error:
        _log.info("usage of %s below the line: %r", sandbox.id, error)
        return {}
    return found if isinstance(found, dict) else {}


async def _guest(sandbox: Sandbox) -> GuestUsage | None:
    """What the guest says; of one that is paused, what it said last."""
    if sandbox.state is S.RUNNING and sandbox.session is not None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                sandbox.usage = await sandbox.session.usage()
        except (PerdureError, TimeoutError) as error:
            _log.info("usage of %s in its guest: %r", sandbox.id, error)
    return sandbox.usage


async def processes_of(sandbox: Sandbox) -> list[SandboxProcess]:
    """What runs in it, by pid; not what is the guest's own. Raises Conflict, GuestFailed."""
    async with sandbox.looked_at() as session:
        found = await session.tree.processes()
        users = await _users(sandbox, session.files.read) if any(one.uid for one in found.processes) else {}
    return sorted((_process(found, one, users) for one in found.processes), key=lambda one: one.pid)


async def _users(sandbox: Sandbox, read: Any) -> dict[int, str]:
    """Names by uid, as the image has them (passwd(5))."""
    text = bytearray()
    try:
        async for data in read("/etc/passwd"):
            text += data
            if len(text) > PASSWD_BYTES_MAX:
                return {}
    except PerdureError as error:
        _log.info("the users of %s: %s", sandbox.id, error)
        return {}
    users: dict[int, str] = {}
    for line in text.decode("utf-8", "replace").splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[0] and fields[2].isascii() and fields[2].isdigit():
            users.setdefault(int(fields[2]), fields[0])
    return users


def _process(found: GuestProcesses, one: GuestProcess, users: dict[int, str]) -> SandboxProcess:
    before, _, after = one.stat.rpartition(")")
    pid, _, name = before.partition(" (")
    fields = after.split()
    try:
        numbers = [int(field) for field in fields[1:22]]
        # from the field after the state on: ppid 0, pgrp 1, session 2, tty 3, utime 10, stime 11, nice 15, threads 16,
        # start 18, size 19, resident 20
        elapsed_s = max(0.0, found.uptime - numbers[18] / TICKS)
        resident_bytes = numbers[20] * PAGE_BYTES
        return SandboxProcess(
            pid=int(pid),
            ppid=numbers[0],
            uid=one.uid,
            user=users.get(one.uid, "root" if one.uid == 0 else str(one.uid)),
            state=fields[0],
            threads=numbers[16],
            nice=numbers[15],
            group=numbers[1],
            session=numbers[2],
            tty=_tty(numbers[3]),
            cpu_s=(numbers[10] + numbers[11]) / TICKS,
            started=found.now - elapsed_s,
            elapsed_s=elapsed_s,
            virtual_bytes=numbers[19],
            resident_bytes=resident_bytes,
            memory_percent=100 * resident_bytes / max(1, found.memory_kib << 10),
            name=name,
            command=" ".join(one.command) if one.command else f"[{name}]" + (" <defunct>" if fields[0] == "Z" else ""),
        )
    except (ValueError, IndexError) as error:
        raise ProtocolError(f"guest: a process is malformed: {one.stat[:80]!r}") from error


def _tty(number: int) -> str:
    """The terminal of that device number, as ps(1) calls it."""
    major, minor = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
    if major in _PTS_MAJORS:
        return f"pts/{(major - _PTS_MAJORS.start) * 256 + minor}"
    if major == _TTY_MAJOR:
        return f"tty{minor}" if minor < _SERIAL_FIRST else f"ttyS{minor - _SERIAL_FIRST}"
    return "?"

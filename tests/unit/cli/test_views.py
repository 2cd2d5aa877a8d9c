"""What ``fcrun top`` and ``fcrun stats`` make of what a node tells."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from perdure.cli.fcrun import _format, _processes, stats
from perdure.errors import InvalidValue, ProtocolError
from perdure.execution.guest.tree import GuestProcess, GuestProcesses
from perdure.execution.sandboxes import measuring
from perdure.model import SandboxProcess, SandboxState, SandboxUsage

STAT = (
    "42 (a ) b) S 7 42 41 34817 42 4194560 100 0 0 0 150 50 0 0 20 -5 3 0 200000 8192000 512 18446744073709551615 "
    "1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0"
)
GUEST = GuestProcesses(1_700_000_000, 2100.0, 8192, (GuestProcess(33, STAT, ("prog", "an arg")),))


def process(**changes: Any) -> SandboxProcess:
    made = measuring._process(GUEST, GUEST.processes[0], {33: "www-data"})
    return msgspec.structs.replace(made, **changes)


def test_what_proc_says_of_a_process() -> None:
    one = process()
    assert (one.pid, one.ppid, one.user, one.state, one.threads, one.nice) == (42, 7, "www-data", "S", 3, -5)
    assert (one.tty, one.cpu_s, one.started, one.elapsed_s) == ("pts/1", 2.0, 1_700_000_000 - 100, 100.0)
    assert (one.resident_bytes, one.memory_percent, one.name) == (512 * 4096, 25.0, "a ) b")
    assert (one.command, one.group, one.session) == ("prog an arg", 42, 41)
    bare = measuring._process(
        GUEST, replace(GUEST.processes[0], uid=5, command=(), stat=STAT.replace(" S ", " Z ")), {}
    )
    assert (bare.user, bare.command) == ("5", "[a ) b] <defunct>")
    for tty, name in ((0, "?"), (0x8800, "pts/0"), (0x8903, "pts/259"), (0x440, "ttyS0"), (0x401, "tty1")):
        stat = STAT.replace(" 34817 ", f" {tty} ")
        assert measuring._process(GUEST, GuestProcess(0, stat, ()), {}).tty == name


@pytest.mark.parametrize("stat", ["", "1", "1 (x)", "1 (x) S 1 2", STAT.replace(" 34817 ", " x "), "x" + STAT])
def test_a_process_that_does_not_read(stat: str) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        measuring._process(GUEST, GuestProcess(0, stat, ()), {})


def table(*options: str) -> list[list[str]]:
    return [line.split() for line in _processes.lines([process(started=time.time())], _processes.wanted(options))]


def test_the_columns_that_ps_would_show() -> None:
    assert table() == table("-ef") == table("-e", "-f")
    heading, row = table()
    assert heading == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert row[:4] == ["www-data", "42", "7", "2"] and row[5:] == ["pts/1", "00:00:02", "prog", "an", "arg"]
    heading, row = table("aux")
    assert heading == ["USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND"]
    assert row[2:8] == ["2.0", "25.0", "8000", "2048", "pts/1", "S<l"] and row[9] == "0:02"
    assert table("-o", "pid,comm=NAME") == table("-eo", "pid,comm=NAME") == table("-opid,comm=NAME")
    assert table("-o", "pid,comm=NAME")[0] == ["PID", "NAME"]
    hostile = process(command="sh -c \x1b]0;mine\x07\nroot 1\udcff")
    (line,) = _processes.lines([hostile], _processes.wanted(["-o", "args="]))[1:]
    assert line == "sh -c ?]0;mine??root 1?"
    assert table("-o", "%cpu,euser") == [["%CPU", "USER"], ["2.0", "www-data"]]
    for options, word in ((["-x", "7"], "'-x'"), (["-o", "colour"], "colour"), (["-o"], "columns"), (["-Z"], "'-Z'")):
        with pytest.raises(InvalidValue, match=word):
            _processes.wanted(options)


def test_what_a_sandbox_uses() -> None:
    before = SandboxUsage(id="1" * 12, name="box", state=SandboxState.RUNNING, time=10.0, cpu_s=5.0, vcpus=2)
    now = msgspec.structs.replace(
        before,
        time=12.0,
        cpu_s=8.0,
        memory_bytes=100 << 20,
        memory_limit_bytes=512 << 20,
        received_bytes=1500,
        written_bytes=3_000_000,
        threads=4,
        stored_bytes=42_000_000,
    )
    row = stats._row(now, before)
    assert (row["CPUPerc"], row["MemUsage"], row["MemPerc"]) == ("150.00%", "100MiB / 512MiB", "19.53%")
    assert (row["NetIO"], row["BlockIO"], row["PIDs"], row["Stored"]) == ("1.5kB / 0B", "0B / 3MB", "4", "42MB")
    assert set(stats.COLUMNS) <= row.keys()
    assert stats.share(before, now) == 0.0 == stats.share(now, None)
    restarted = msgspec.structs.replace(now, cpu_s=0.1)
    assert stats.share(restarted, before) == 0.0
    asleep = SandboxUsage(id="1" * 12, name="box", state=SandboxState.SUSPENDED, time=1.0, stored_bytes=5)
    assert stats._row(asleep, None)["MemUsage"] == "0B / 0B" and stats._row(asleep, None)["MemPerc"] == "0.00%"
    assert [_format.binary_size(size) for size in (0, 1023, 1536, 5 << 30, 3 << 40)] == [
        *("0B", "1023B", "1.5KiB", "5GiB", "3TiB")
    ]

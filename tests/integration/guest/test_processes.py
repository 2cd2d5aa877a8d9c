"""Processes through the real guestd: their streams, their ends, and what reconnects and restarts leave of them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import CommandNotExecutable, CommandNotFound, Conflict, InvalidValue
from perdure.execution.guest.session import GuestSession, Process
from perdure.linux.readiness import readable
from perdure.model import ExecSpec

from .conftest import DEADLINE_S, Guest


async def collect(process: Process) -> tuple[bytes, bytes]:
    """All output, acknowledged as it comes; checks that each offset is where the last chunk ended."""
    streams = {1: bytearray(), 2: bytearray()}
    async for stream, offset, data in process.output():
        assert offset == len(streams[stream])
        streams[stream] += data
        process.ack(stream, offset + len(data))
    return bytes(streams[1]), bytes(streams[2])


async def run(session: GuestSession, *command: str, **options: Any) -> tuple[int, bytes, bytes]:
    async with asyncio.timeout(DEADLINE_S):
        process = await session.exec(ExecSpec(command=list(command), **options))
        out, errors = await collect(process)
        status = await process.wait()
        process.release()
        return status, out, errors


def shell(script: str, **options: Any) -> ExecSpec:
    return ExecSpec(command=["sh", "-c", script], **options)


async def read_until(process: Process, text: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(DEADLINE_S):
        async for stream, offset, data in process.output():
            process.ack(stream, offset + len(data))
            seen += data
            if text in seen:
                return seen
    raise AssertionError(f"{text!r} did not come: {seen!r}")


async def test_output_on_both_streams_and_the_exit_status(guest: Guest) -> None:
    assert await run(guest.session, "sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    assert guest.session.processes == {}


async def test_environment_working_directory_and_path(guest: Guest, tmp_path: Path) -> None:
    new = tmp_path / "made" / "on the way"
    status, out, _ = await run(
        guest.session, "sh", "-c", 'echo "$A|$HOME|$PATH"; pwd', env={"A": "b=c", "HOME": "/h"}, cwd=str(new)
    )
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert (status, out.decode()) == (0, f"b=c|/h|{path}\n{new}\n")


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "0:0"),
        ("nobody", "65534:65534"),
        ("65534", "65534:65534"),
        ("4321:8765", "4321:8765"),
        ("nobody:daemon", "65534:1"),
        ("4321", "4321:0"),
    ],
)
async def test_users_of_every_form(guest: Guest, user: str, expected: str) -> None:
    assert (await run(guest.session, "sh", "-c", "echo $(id -u):$(id -g)", user=user))[1].decode() == expected + "\n"


async def test_what_cannot_be_started_says_which_way(guest: Guest, tmp_path: Path) -> None:
    (plain := tmp_path / "plain").write_text("no program")
    plain.chmod(0o644)
    (noise := tmp_path / "noise").write_bytes(b"\1\2\3")
    noise.chmod(0o755)
    with pytest.raises(CommandNotFound, match='"no-such-program": executable file not found'):
        await run(guest.session, "no-such-program")
    with pytest.raises(CommandNotFound, match="no such file"):
        await run(guest.session, str(tmp_path / "missing"))
    with pytest.raises(CommandNotExecutable, match="Permission denied"):
        await run(guest.session, str(plain))
    with pytest.raises(CommandNotExecutable, match="exec format error"):
        await run(guest.session, str(noise))
    with pytest.raises(CommandNotExecutable, match="working directory"):
        await run(guest.session, "true", cwd=str(plain))
    with pytest.raises(InvalidValue, match="unable to find user nosuch"):
        await run(guest.session, "true", user="nosuch")
    with pytest.raises(InvalidValue, match="unable to find group nosuch"):
        await run(guest.session, "true", user="0:nosuch")
    with pytest.raises(InvalidValue, match="empty"):
        await guest.session.exec(ExecSpec(command=[]))
    assert guest.session.processes == {}


async def test_a_command_too_long_for_the_channel_is_refused(guest: Guest) -> None:
    with pytest.raises(InvalidValue, match="too large"):
        await guest.session.exec(ExecSpec(command=["true", "x" * (1 << 20)]))
    assert (await run(guest.session, "true"))[0] == 0


async def test_a_killed_process_has_128_and_the_signal(guest: Guest) -> None:
    process = await guest.session.exec(ExecSpec(command=["sleep", "60"]))
    await process.signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 128 + signal.SIGTERM
    with pytest.raises(Conflict, match="exited"):
        await process.signal(signal.SIGTERM)


async def test_a_signal_to_the_group_reaches_the_children(guest: Guest) -> None:
    process = await guest.session.exec(shell("sleep 60 & echo started; wait; sleep 60"))
    await read_until(process, b"started")
    await process.signal(signal.SIGKILL, group=True)
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 137


async def test_orphans_are_reaped_and_do_not_hold_the_end_back(guest: Guest) -> None:
    status, out, _ = await run(guest.session, "sh", "-c", "(sleep 0.1; exit 3) & sleep 60 & echo $!")
    assert status == 0
    (await guest.session.exec(ExecSpec(command=["kill", out.decode().strip()]))).close_stdin()


async def test_stdin_arrives_whole_and_ends(guest: Guest) -> None:
    data = bytes(range(256)) * 12_000  # 3 MB: many windows
    process = await guest.session.exec(ExecSpec(command=["sha256sum"], stdin=True))

    async def feed() -> None:
        for at in range(0, len(data), 100_000):
            await process.write_stdin(data[at : at + 100_000])
        process.close_stdin()

    async with asyncio.timeout(DEADLINE_S):
        _, (out, _) = await asyncio.gather(feed(), collect(process))
    assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_stdin_of_a_process_that_does_not_read_is_dropped_at_its_end(guest: Guest) -> None:
    process = await guest.session.exec(ExecSpec(command=["true"], stdin=True))
    async with asyncio.timeout(DEADLINE_S):
        await process.write_stdin(bytes(3_000_000))
        process.close_stdin()
        assert await process.wait() == 0


async def test_output_that_is_not_acknowledged_stops_the_process(guest: Guest) -> None:
    process = await guest.session.exec(shell("head -c 1000000 /dev/zero; echo done >&2"))
    received = 0
    async with asyncio.timeout(DEADLINE_S):
        async for stream, offset, data in process.output():
            assert stream == 1
            received = offset + len(data)
            if received == 256 << 10:
                break
        assert process.exit_status is None
        for _ in range(3):  # still, over requests that come and go: nothing beyond the window
            assert (await run(guest.session, "true"))[0] == 0
        assert process.received(1) == 256 << 10
        process.ack(1, received)
        async for stream, offset, data in process.output():
            process.ack(stream, offset + len(data))
        assert (process.received(1), process.received(2)) == (1_000_000, 5)


async def test_a_terminal(guest: Guest) -> None:
    process = await guest.session.exec(
        shell(
            "tty; stty size; read line; stty size; echo got $line; cat; echo end",
            tty=True,
            stdin=True,
            rows=30,
            columns=90,
        )
    )
    first = await read_until(process, b"30 90")
    assert b"/dev/pts/" in first
    process.resize(40, 100)
    await process.write_stdin(b"hello\n")
    assert b"40 100" in await read_until(process, b"got hello")
    process.close_stdin()
    await read_until(process, b"end")
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0


async def test_control_c_interrupts_in_a_terminal(guest: Guest) -> None:
    process = await guest.session.exec(
        shell("trap 'exit 130' INT; echo go; while :; do sleep 0.05; done", tty=True, stdin=True)
    )
    await read_until(process, b"go")
    await process.write_stdin(b"\x03")
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 130


async def test_cuts_in_the_middle_of_a_stream_lose_and_double_nothing(guest: Guest) -> None:
    process = await guest.session.exec(shell("seq 1 150000; echo end >&2"))
    out = bytearray()
    cuts = 0
    async with asyncio.timeout(DEADLINE_S * 2):
        async for stream, offset, data in process.output():
            if stream == 1:
                assert offset == len(out)
                out += data
            process.ack(stream, offset + len(data))
            if len(out) > (cuts + 1) * 100_000:
                cuts += 1
                if cuts % 2:
                    guest.cut_after = 10_000 * cuts + 7  # in the middle of a frame
                else:
                    await guest.cut()
    assert bytes(out) == b"".join(b"%d\n" % n for n in range(1, 150001))
    assert cuts >= 4 and guest.connections >= 4  # on a busy machine several fall into one gap
    assert await process.wait() == 0


async def test_cuts_in_the_middle_of_stdin_lose_and_double_nothing(guest: Guest) -> None:
    data = b"".join(b"%d\n" % n for n in range(200_000))
    process = await guest.session.exec(ExecSpec(command=["sha256sum"], stdin=True))

    async def feed() -> None:
        for number, at in enumerate(range(0, len(data), 50_000)):
            await process.write_stdin(data[at : at + 50_000])
            if number % 5 == 2:
                await guest.cut()
        process.close_stdin()
        await guest.cut()

    async with asyncio.timeout(DEADLINE_S * 2):
        _, (out, _) = await asyncio.gather(feed(), collect(process))
    assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_what_is_read_while_the_host_greets_makes_room(guest: Guest, tmp_path: Path) -> None:
    """The guest has said how much it takes; then its program reads; then the host's greeting comes."""
    go, out = tmp_path / "go", tmp_path / "out"
    size = 2 << 20
    process = await guest.session.exec(
        shell(f"until [ -e {go} ]; do sleep 0.01; done; exec head -c {size} > {out}", stdin=True)
    )
    feeding = asyncio.create_task(process.write_stdin(bytes(size)))
    for _ in range(3):  # each answer comes after what the guest said of the input before it: pipe and window are full
        await guest.session.thaw()
    guest.hold()
    await guest.cut()
    go.touch()
    async with asyncio.timeout(DEADLINE_S):
        # the guest cannot tell: its greeting is not answered
        while not out.exists() or out.stat().st_size < 300_000:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    guest.let_go()
    async with asyncio.timeout(DEADLINE_S):
        await feeding
        assert await process.wait() == 0
    assert out.stat().st_size == size


async def test_requests_are_done_once_over_a_cut(guest: Guest, tmp_path: Path) -> None:
    log = tmp_path / "log"
    guest.cut_after = 1  # the reply's first byte arrives, the rest is lost
    process = await guest.session.exec(
        shell(f"trap 'echo signal >> {log}' USR1; echo started >> {log}; echo up; while :; do sleep 0.05; done")
    )
    await read_until(process, b"up")
    guest.cut_after = 1
    await process.signal(signal.SIGUSR1)
    await process.signal(signal.SIGKILL)
    await process.wait()
    assert log.read_text().split() in (["started", "signal"], ["started"])  # the kill may come before the trap runs
    assert guest.connections >= 3


async def test_a_fresh_session_adopts_what_runs(guest: Guest) -> None:
    process = await guest.session.exec(
        shell("echo one; read x; echo two $x; exit 4", stdin=True), process_id="0123456789ab"
    )
    out = await read_until(process, b"one\n")
    assert out == b"one\n"
    session = await guest.replace_session()
    adopted = session.processes["0123456789ab"]
    assert adopted.pid == process.pid
    assert adopted.exit_status is None
    assert await session.exec(shell("never run"), process_id="0123456789ab") is adopted
    await adopted.write_stdin(b"hello\n")
    async with asyncio.timeout(DEADLINE_S):
        chunks = [(stream, offset, data) async for stream, offset, data in adopted.output()]
        assert (1, 4, b"two hello\n") in chunks  # acknowledged bytes do not come again
        assert await adopted.wait() == 4


async def test_a_start_that_fails_is_told_to_whoever_adopts_it(guest: Guest) -> None:
    with pytest.raises(CommandNotFound):
        await guest.session.exec(ExecSpec(command=["no-such-program"]), process_id="00000000abcd")
    assert (await guest.replace_session()).processes == {}
    asking = asyncio.create_task(guest.session.exec(ExecSpec(command=["no-such-program"]), process_id="00000000abce"))
    await asyncio.sleep(0)  # it is on its way when the node that asked is gone
    session = await guest.replace_session()
    asking.cancel()
    adopted = session.processes["00000000abce"]
    async with asyncio.timeout(DEADLINE_S):
        assert await adopted.wait() == 127
        assert await collect(adopted) == (b"", b"")
    adopted.release()


async def test_adoption_skips_what_the_log_file_has(guest: Guest) -> None:
    process = await guest.session.exec(shell("printf 0123456789; read x", stdin=True))
    seen = b""
    async for _, _, data in process.output():  # nothing is acknowledged, as if fcrund died before it could
        seen += data
        if len(seen) == 10:
            break
    session = await guest.replace_session()
    adopted = session.processes[process.id]
    assert adopted.skip_to(1, 6) == 6
    async for stream, offset, data in adopted.output():
        assert (stream, offset, data) == (1, 6, b"6789")
        break
    assert adopted.skip_to(1, 600) == 10  # a log that is ahead of a guest that went back in time
    adopted.close_stdin()
    await asyncio.wait_for(adopted.wait(), DEADLINE_S)


async def test_an_exit_that_nobody_saw_is_told_again(guest: Guest) -> None:
    process = await guest.session.exec(shell("echo bye; exit 9"))
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 9
    session = await guest.replace_session()
    adopted = session.processes[process.id]
    assert await adopted.wait() == 9
    assert await collect(adopted) == (b"bye\n", b"")
    adopted.release()
    assert (await guest.replace_session()).processes == {}


async def test_a_release_that_was_lost_is_said_again(guest: Guest) -> None:
    process = await guest.session.exec(ExecSpec(command=["true"]))
    await asyncio.wait_for(process.wait(), DEADLINE_S)
    guest.session.connection_down()  # this side has no connection while it releases
    process.release()
    await guest.cut()
    assert guest.session.processes == {}
    assert (await guest.replace_session()).processes == {}


async def test_a_frame_that_guestd_does_not_understand_costs_the_connection_only(guest: Guest) -> None:
    process = await guest.session.exec(shell("read x; echo got $x", stdin=True))
    connections = guest.connections
    guest.session._ready.clear()
    await guest.send_raw(b"\x05\x00\x00\x00\x7fjunk")
    await guest.session.ready(DEADLINE_S)
    assert guest.connections == connections + 1
    await process.write_stdin(b"it\n")
    assert (await asyncio.wait_for(collect(process), DEADLINE_S))[0] == b"got it\n"


async def test_many_processes_at_once(guest: Guest) -> None:
    results = await asyncio.gather(*(run(guest.session, "sh", "-c", f"echo {n}; exit {n}") for n in range(30)))
    assert [(status, int(out)) for status, out, _ in results] == [(n, n) for n in range(30)]


async def test_power_off_ends_guestd_and_its_processes(guest: Guest) -> None:
    process = await guest.session.exec(ExecSpec(command=["sleep", "60"]))
    guest.ends_by_itself = True
    pidfd = os.pidfd_open(process.pid)
    try:
        await asyncio.wait_for(guest.session.power_off(), DEADLINE_S)
        assert (await guest.ended())[0] == 0
        assert await asyncio.to_thread(readable, pidfd, DEADLINE_S)  # it was killed
    finally:
        os.close(pidfd)

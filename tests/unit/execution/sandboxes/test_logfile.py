"""The log file: nothing acknowledged is lost by a crash, readers follow, tails begin at a line."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from perdure.execution.sandboxes.logfile import LogFile
from perdure.formats import logs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


async def read(log: LogFile, offset: int = 0) -> list[tuple[int, bytes]]:
    return [(record.stream, record.data) async for record in log.read(offset, lambda: False)]


async def test_positions_survive_a_reopening(path: Path) -> None:
    log = LogFile(path)
    log.append(logs.STDOUT, b"one")
    log.append(logs.STDERR, b"to")
    log.close()
    again = LogFile(path)
    assert again.positions == {logs.STDOUT: 3, logs.STDERR: 2}
    again.restart(100, 7)
    again.append(logs.STDOUT, b"x")
    again.close()
    third = LogFile(path)
    assert third.positions == {logs.STDOUT: 101, logs.STDERR: 7}
    assert await read(third) == [(1, b"one"), (2, b"to"), (1, b"x")]
    third.close()


@pytest.mark.parametrize("cut", range(1, 20))
async def test_a_record_that_was_cut_off_is_dropped_whole(path: Path, cut: int) -> None:
    log = LogFile(path)
    log.append(logs.STDOUT, b"kept")
    log.append(logs.STDOUT, b"torn")
    log.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = LogFile(path)
    assert again.positions[logs.STDOUT] == 4
    again.append(logs.STDOUT, b"torn")
    assert await read(again) == [(1, b"kept"), (1, b"torn")]
    again.close()


async def test_what_comes_after_damage_is_kept_beside(path: Path) -> None:
    log = LogFile(path)
    for word in (b"one", b"two", b"three"):
        log.append(logs.STDOUT, word)
    log.close()
    whole = bytearray(path.read_bytes())
    whole[logs.HEADER_BYTES + 3] = 99  # the second record's stream number
    path.write_bytes(whole)
    again = LogFile(path)
    assert again.positions[logs.STDOUT] == 3
    again.restart(11)
    again.append(logs.STDOUT, b"four")
    assert await read(again) == [(1, b"one"), (1, b"four")]
    assert path.with_name("log.damaged").read_bytes() == whole
    again.close()


async def test_a_reader_follows_until_the_end(path: Path) -> None:
    log = LogFile(path)
    live = True

    async def follow() -> bytes:
        return b"".join([record.data async for record in log.read(0, lambda: live)])

    reading = asyncio.create_task(follow())
    for word in (b"a", b"b", b"c"):
        await asyncio.sleep(0)
        log.append(logs.STDOUT, word)
    live = False
    log.changed.notify()
    async with asyncio.timeout(5):
        assert await reading == b"abc"
    log.close()


async def test_a_byte_is_found_with_where_it_is_in_the_output(path: Path) -> None:
    log = LogFile(path)
    log.restart()
    log.append(logs.STDOUT, b"one\n")
    log.append(logs.STDERR, b"two\n")
    log.restart(1, 4)  # a restored machine writes again from there
    log.append(logs.STDOUT, b"ne\n")
    for offset, positions in enumerate(
        [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (4, 2), (4, 3), (1, 4), (2, 4), (3, 4), (4, 4), (4, 4)]
    ):
        place = log.place(offset)
        data = b"".join(data for _, data in await read(log, place.at))[place.skip :]
        assert data == b"one\ntwo\nne\n"[offset:]
        assert place.written == min(offset, 11) and tuple(place.positions.values()) == positions
    at, skip = log.tail(2)
    place = log.place(upto=at, skip=skip)
    assert (place.written, tuple(place.positions.values())) == (4, (4, 0))
    whole = [record.stream async for record in log.read(0, lambda: False, positions=True)]
    assert whole == [logs.POSITION, logs.STDOUT, logs.STDERR, logs.POSITION, logs.STDOUT]
    log.close()


@pytest.mark.parametrize(
    ("pieces", "lines", "expected"),
    [
        ([b"1\n2\n3\n"], 2, b"2\n3\n"),
        ([b"1\n2\n", b"3\n"], 2, b"2\n3\n"),
        ([b"1\n2\n3"], 2, b"2\n3"),
        ([b"1\n", b"2", b"2\n", b"3\n"], 2, b"22\n3\n"),
        ([b"1\n2\n"], 9, b"1\n2\n"),
        ([b"1\n2\n"], 0, b""),
        ([], 3, b""),
    ],
)
async def test_tail_begins_at_a_line(path: Path, pieces: list[bytes], lines: int, expected: bytes) -> None:
    log = LogFile(path)
    log.restart()
    for piece in pieces:
        log.append(logs.STDOUT, piece)
    offset, skip = log.tail(lines)
    data = b"".join(data for _, data in await read(log, offset))
    assert data[skip:] == expected
    log.close()

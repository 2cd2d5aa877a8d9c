"""What waits between a capture and its collecting, and what a capture that is lost costs the next one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.errors import MachineFailed
from perdure.formats import capturefile
from perdure.formats.blockmap import BLOCK, LAYER, ZERO
from perdure.keeper.captures import Captures
from perdure.keeper.collector import CAPTURED
from perdure.keeper.loop import Loop
from perdure.testing import smalldisks


class Firecracker:
    """Writes one block of two, as ``create``; its kinds are noted."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def create(self, kind: str) -> None:
        self.kinds.append(kind)
        Path(CAPTURED[0]).write_bytes(b"state")
        with Path(CAPTURED[1]).open("wb") as file:
            file.truncate(2 * BLOCK)
            os.pwrite(file.fileno(), b"x" * BLOCK, BLOCK)


def sources(folder: Path) -> list[int]:
    return [run.source for run in capturefile.decode((folder / "memory").read_bytes()).runs]


def test_a_capture_waits_until_it_is_collected(place: Path, loop: Loop, collector_program: Path) -> None:
    captures, machine = Captures(loop), Firecracker()
    for wanted, runs in (("full", [ZERO, LAYER]), ("diff", [LAYER])):
        assert captures.take(wanted, str(collector_program), None, machine.create) == wanted
        assert captures.is_waiting
        folder = place / wanted
        folder.mkdir()
        assert captures.collect(str(folder)) == sum(path.stat().st_size for path in folder.iterdir())
        assert sources(folder) == runs  # a hole is zeros in a full one, and as it was in a diff
        assert not captures.is_waiting
        assert not any(os.path.lexists(name) for name in CAPTURED)
    assert machine.kinds == ["full", "diff"]


def test_a_diff_that_is_lost_makes_the_next_capture_a_full_one(
    place: Path, loop: Loop, collector_program: Path
) -> None:
    captures, machine = Captures(loop), Firecracker()
    program = str(collector_program)
    captures.take("diff", program, None, machine.create)
    with pytest.raises(MachineFailed, match="could not be written to /nowhere"):
        captures.collect("/nowhere")
    assert not captures.is_waiting
    assert captures.take("diff", program, None, machine.create) == "full"
    captures.forget()
    assert captures.take("diff", program, None, machine.create) == "full"
    captures.collect(str(place))
    assert sources(place) == [LAYER]  # it stands in for a diff
    assert captures.take("diff", program, None, machine.create) == "diff"
    captures.begin_anew()  # another machine: its first diff is whole
    assert captures.take("diff", program, None, machine.create) == "diff"
    captures.forget()
    assert machine.kinds == ["diff", "full", "full", "diff", "diff"]


def test_nothing_waits_after_a_capture_that_failed(place: Path, loop: Loop, collector_program: Path) -> None:
    captures, machine = Captures(loop), Firecracker()

    def refuse(kind: str) -> None:
        machine.create(kind)
        loop.turn(0)  # the collector starts meanwhile
        assert captures.is_waiting
        raise MachineFailed("no!")

    with pytest.raises(MachineFailed, match="no!"):
        captures.take("diff", str(collector_program), None, refuse)
    assert not captures.is_waiting
    assert list(place.iterdir()) == []
    with pytest.raises(MachineFailed, match="the collector /nowhere cannot be started: No such file"):
        captures.take("diff", "/nowhere", None, lambda kind: loop.turn(0))  # early is no error
    assert not captures.is_waiting


def test_a_capture_begins_when_the_one_before_has_let_go_of_its_room(
    place: Path, loop: Loop, collector_program: Path
) -> None:
    """A machine's folder has room for one: the collector of the one before maps it until it ends."""
    captures = Captures(loop)
    program = place / "collector"  # no search for leaks: that is a thread which lives on for a moment
    program.write_text(f'#!/bin/sh\nASAN_OPTIONS=detect_leaks=0 exec {collector_program} "$@"\n')
    program.chmod(0o755)
    with smalldisks.mounted(place / "jail", 40) as folder:
        captures.place = str(folder)
        free = os.statvfs(folder).f_bavail

        def create(kind: str) -> None:
            assert os.statvfs(folder).f_bavail == free
            (folder / CAPTURED[0]).write_bytes(b"state")
            (folder / CAPTURED[1]).write_bytes(b"x" * (24 << 20))

        for name in ("first", "next"):
            (place / name).mkdir()
            captures.take("full", str(program), None, create)
            captures.collect(str(place / name))
        captures.take("full", str(program), None, create)  # that was not collected
        captures.take("full", str(program), None, create)
        captures.forget()

"""What a template depends on, and what is refused; the boot itself is proved by the vm tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.errors import MachineFailed, NotFound, SnapshotInvalid, Unsupported
from perdure.execution.snapshots import templates, warming
from perdure.formats.blockmap import BASE, BLOCK, Run
from perdure.formats.manifest import Facts
from perdure.host.paths import Home
from perdure.testing.snapshots import BLOCKS, Bench, block, blocks_of, captured, facts


def test_zeros_are_holes_and_not_in_the_map(bench: Bench) -> None:
    content = bytes(3 * BLOCK) + b"a" * (5 * BLOCK) + bytes((BLOCKS - 8) * BLOCK)
    template = bench.template(content)
    assert template.runs() == [Run(3, 5, BASE, 3)]
    assert template.memory.read_bytes() == content
    assert template.memory.stat().st_blocks * 512 <= 8 * BLOCK
    assert {path.name for path in template.memory.parent.iterdir()} == {"state", "memory", "map", "template.json"}


def test_other_content_is_another_digest(bench: Bench) -> None:
    assert bench.template(b"a" * BLOCKS * BLOCK, "one").digest != bench.template(b"b" * BLOCKS * BLOCK, "two").digest


@settings(max_examples=settings().max_examples // 2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 3), min_size=BLOCKS, max_size=BLOCKS),
    st.dictionaries(st.integers(0, BLOCKS - 1), st.integers(0, 3), max_size=60),
    st.booleans(),
)
def test_a_difference_over_a_base_is_what_the_whole_would_be(
    new_bench: Callable[[], Bench], under: list[int], changed: dict[int, int], named: bool
) -> None:
    bench = new_bench()
    base = bench.template(blocks_of(under), "base")
    folder = bench.root / "building"
    held = {number: block(seed) for number, seed in changed.items()}
    (folder / "memory").write_bytes(captured(held, BLOCKS, base if named else None))
    (folder / "state").write_bytes(b"state of the template")
    templates.seal(folder, bench.templates / "over", facts(), base=base)
    whole = bench.template(blocks_of([changed.get(number, seed) for number, seed in enumerate(under)]), "whole")
    over = templates.load(bench.templates, "over")
    assert over.digest == whole.digest
    assert over.memory.read_bytes() == whole.memory.read_bytes()


def test_a_template_of_a_part_of_the_memory_or_over_another_one_is_refused(bench: Bench) -> None:
    base = bench.template(b"a" * (BLOCKS * BLOCK), "base")
    other = bench.template(b"b" * (BLOCKS * BLOCK), "other")
    folder = bench.root / "building"
    (folder / "state").write_bytes(b"")
    (folder / "memory").write_bytes(captured({1: b"a" * BLOCK}, BLOCKS, base))
    for wrong, words in ((None, "not all of its memory"), (other, "captured over template")):
        with pytest.raises(MachineFailed, match=words):
            templates.seal(folder, bench.templates / "warm", facts(), base=wrong)
    (folder / "memory").write_bytes(b"")
    with pytest.raises(MachineFailed, match="not whole"):
        templates.seal(folder, bench.templates / "warm", facts(), base=base)
    assert {path.name for path in bench.templates.iterdir()} == {"base", "other"}


def test_memory_of_another_size_never_becomes_a_template(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(captured({0: bytes(BLOCK)}, 1))
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(MachineFailed, match="of 1 blocks of memory"):
        templates.seal(tmp_path, bench.templates / "warm", facts())
    with pytest.raises(NotFound):
        templates.load(bench.templates, "warm")


@pytest.mark.parametrize("part", ["state", "map", "template.json", "memory"])
def test_any_damaged_part_is_refused(bench: Bench, part: str) -> None:
    path = bench.template(b"a" * BLOCKS * BLOCK).memory.with_name(part)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(SnapshotInvalid):
        templates.load(bench.templates, "warm")


async def test_a_build_takes_what_killed_ones_left_and_nothing_of_a_pull(bench: Bench) -> None:
    """Two machines boot one NAME to different contents: another one's may be on its way here in this moment."""
    home = Home(bench.root, bench.root / "cache")
    for left in ("warm.0a1b2c3d.new", "warm-0123456789abcdef.new", "warmer.0a1b2c3d.new"):
        (bench.templates / left).mkdir()

    async def make(folder: Path, name: str) -> Facts:
        (folder / "memory").write_bytes(captured(dict.fromkeys(range(BLOCKS), block(1)), BLOCKS))
        (folder / "state").write_bytes(b"state")
        return facts()

    (bench.templates / "warm").mkdir()  # all of it that a killed removal left: it has no record, and is in the way
    (bench.templates / "warm" / "memory").write_bytes(b"")
    made = await warming._made(home, "warm", make)
    assert made.memory.read_bytes() == block(1) * BLOCKS
    assert {path.name for path in bench.templates.iterdir() if path.is_dir()} == {
        "warm", "warm-0123456789abcdef.new", "warmer.0a1b2c3d.new",
    }  # fmt: skip


def test_large_guests_need_a_firecracker_that_captures_them_right() -> None:
    warming.check_supported("1.12.1", 3072)
    warming.check_supported("1.15.0", 4096)
    with pytest.raises(Unsupported, match=r"Firecracker 1\.12\.1 cannot take diff snapshots .* 4096 MiB") as caught:
        warming.check_supported("1.12.1", 4096)
    assert "3072 MiB" in caught.value.hint


def test_the_cpu_is_read_on_both_architectures() -> None:
    x86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\n\nvendor_id\t: Other\n"
    arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
    assert warming.cpu_facts(x86) == ("AuthenticAMD", 25)
    assert warming.cpu_facts(arm) == ("0x41", 0xD0C)

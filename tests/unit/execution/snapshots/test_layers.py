"""Layer files against damage: whatever is changed, no wrong byte is ever read, and the reason is named."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.errors import SnapshotInvalid
from perdure.execution.snapshots import layers
from perdure.execution.snapshots.layers import Layer
from perdure.execution.snapshots.store import Store
from perdure.formats import blockmap, seekable
from perdure.formats.blockmap import BLOCK, DISK, LAYER, NO_BASE, ZERO, Run
from perdure.formats.manifest import Descriptor

CONTENT = [random.Random(number).randbytes(BLOCK // 8) * 8 for number in range(40)]
RUNS = [Run(0, 20, LAYER, 0), Run(20, 7, ZERO), Run(50, 20, LAYER, 20)]


@pytest.fixture(scope="module")
def layer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store(tmp_path_factory.mktemp("store"))
    with store.writing():
        made = layers.write(store, RUNS, CONTENT, kind=DISK, blocks=128, base=NO_BASE)
    assert made is not None
    return store.verified(made)


def test_what_was_written_is_read(layer_path: Path) -> None:
    with Layer(layer_path) as layer:
        assert layer.map.runs == RUNS
        assert layer.starts == [0, 16, 32, 40]
        assert b"".join(layer.frame(number) for number in range(3)) == b"".join(CONTENT)


fixture = settings(
    max_examples=2 * settings().max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fixture
@given(place=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_read_as_content(layer_path: Path, tmp_path: Path, place: int, bit: int) -> None:
    data = bytearray(layer_path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    damaged = tmp_path / layer_path.name
    damaged.write_bytes(data)
    try:
        with Layer(damaged) as layer:
            assert layer.map.runs == RUNS  # a bit that decoders ignore, or …
            for number in range(3):
                assert layer.frame(number) == b"".join(CONTENT[16 * number : 16 * number + 16])
    except SnapshotInvalid as error:  # … the reason, with the layer's name
        assert str(damaged) in error.message
        assert error.details["layer"] == layer_path.name


@fixture
@given(place=st.integers(min_value=0), bit=st.integers(0, 7))
def test_the_store_refuses_any_flipped_bit(layer_path: Path, tmp_path: Path, place: int, bit: int) -> None:
    store = Store(tmp_path)
    data = bytearray(layer_path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    store.blob_path(f"sha256:{layer_path.name}").write_bytes(data)
    with pytest.raises(SnapshotInvalid, match="damaged or changed"):
        store.verified(Descriptor(media_type="a layer", digest=f"sha256:{layer_path.name}", size=len(data)))


@fixture
@given(length=st.integers(min_value=0))
def test_any_truncation_is_refused_at_opening(layer_path: Path, tmp_path: Path, length: int) -> None:
    data = layer_path.read_bytes()
    cut = tmp_path / layer_path.name
    cut.write_bytes(data[: length % len(data)])
    with pytest.raises(SnapshotInvalid):
        Layer(cut)


def test_a_seekable_file_of_another_program_is_refused(tmp_path: Path) -> None:
    frame = layers.compressed(b"x" * 100)
    table = seekable.encode_table([seekable.Frame(0, len(frame), 100, seekable.content_checksum(frame))])
    (tmp_path / "foreign").write_bytes(frame + table)
    with pytest.raises(SnapshotInvalid, match="not a layer"):
        Layer(tmp_path / "foreign")


def test_a_newer_layer_says_so(layer_path: Path, tmp_path: Path) -> None:
    data = bytearray(layer_path.read_bytes())
    data[data.index(blockmap.MAGIC) + 4] = 9
    (tmp_path / "newer").write_bytes(data)
    with pytest.raises(SnapshotInvalid, match="format version 9") as caught:
        Layer(tmp_path / "newer")
    assert "newer version" in caught.value.hint


def test_a_layer_over_another_base_is_refused_by_name(layer_path: Path) -> None:
    store = Store(layer_path.parents[2])
    described = [Descriptor(media_type="", digest=f"sha256:{layer_path.name}", size=layer_path.stat().st_size)]
    with pytest.raises(SnapshotInvalid, match="wrong base") as caught:
        layers.open_chain(store, described, kind=DISK, blocks=128, base=b"x" * 32)
    assert caught.value.details["layer"] == layer_path.name
    with pytest.raises(SnapshotInvalid, match="is for disk of 128 blocks, not memory"):
        layers.open_chain(store, described, kind=blockmap.MEMORY, blocks=128, base=NO_BASE)

"""Records, names and what an interrupted operation leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import InvalidValue, ProtocolError
from perdure.execution.sandboxes import names
from perdure.execution.sandboxes.record import Folder, KeptSnapshot, Record
from perdure.model import SandboxSpec, SnapshotInfo


def record(**more: object) -> Record:
    spec = SandboxSpec(image="tiny:latest")
    return Record(id="0123456789ab", name="box", spec=spec, image_digest="sha256:00", created=1.0, **more)  # type: ignore[arg-type]


def test_round_trip(tmp_path: Path) -> None:
    folder, kept = Folder(tmp_path), record(generation=3, cause="exit", exit_status=0)
    folder.save(kept)
    assert folder.load() == kept
    assert [path.name for path in tmp_path.iterdir()] == ["sandbox.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 1}', '{"id": "x"}', "\xff"])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "sandbox.json").write_text(text, encoding="latin-1")
    with pytest.raises(ProtocolError, match=r"sandbox\.json"):
        Folder(tmp_path).load()


def test_a_newer_record_is_refused(tmp_path: Path) -> None:
    Folder(tmp_path).save(record(version=99))
    with pytest.raises(ProtocolError, match="version 99"):
        Folder(tmp_path).load()


def test_tidy_keeps_only_the_files_of_the_current_machine(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for number in (1, 2, 3):
        folder.machine(number).mkdir()
    folder.new_capture()
    folder.tidy(record(generation=2, has_disk=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["machine-2"]
    folder.tidy(record(generation=2, has_disk=False))
    assert not list(tmp_path.iterdir())


def test_snapshots_are_found_by_a_unique_beginning() -> None:
    kept = [
        KeptSnapshot(info=SnapshotInfo(digest=f"sha256:{word}", sandbox_id="x", created=0.0)) for word in ("ab1", "ab2")
    ]
    one = record(snapshots=kept)
    assert one.snapshot("sha256:ab1") is kept[0]
    assert one.snapshot("ab2") is kept[1]
    assert one.snapshot("ab") is None
    assert one.snapshot("") is None
    assert one.snapshot("zz") is None


def test_random_names_are_valid_and_never_taken() -> None:
    taken: set[str] = set()
    for _ in range(300):
        name = names.random_name(taken)
        assert names.check_name(name) not in taken
        taken.add(name)


@pytest.mark.parametrize("name", ["", "-x", ".x", "a b", "a/b", "ä", "x" * 64, "a\n"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match="invalid sandbox name"):
        names.check_name(name)

"""The certificate that a daemon makes for itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.host import certificate


def test_a_key_and_its_certificate_are_on_the_disk_before_they_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = os.fsync, list[str]()

    def fsync(descriptor: int) -> None:
        real(descriptor)
        done.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr(os, "fsync", fsync)
    folder = tmp_path / "tls"
    made = certificate.ensure(folder, "127.0.0.1")
    assert set(done[:2]) == {str(folder / "key.pem.new"), str(folder / "certificate.pem.new")}
    assert done[-1] == str(folder)
    assert certificate.ensure(folder, "127.0.0.1") == made and len(done) == 4


def test_a_certificate_whose_key_is_gone_is_made_anew_and_never_lies_beside_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, key = certificate.ensure(tmp_path / "tls", "127.0.0.1")
    key.unlink()
    real = Path.replace

    def dies(path: Path, target: Path) -> Path:
        if target == made:
            raise OSError("the power is gone")
        return real(path, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(OSError, match="power"):
        certificate.ensure(tmp_path / "tls", "127.0.0.1")
    monkeypatch.undo()
    certificate.context(*certificate.ensure(tmp_path / "tls", "127.0.0.1"))  # they belong together

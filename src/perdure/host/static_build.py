"""The two small static C programs that are PID 1 somewhere: guestd, and the init of the emulated host.

They are compiled with the C compiler of the ``ziglang`` package (it brings musl for every architecture) on first use,
and kept under the digest of their sources.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from perdure.errors import Unavailable
from perdure.host.progress import Progress
from perdure.host.vault import Part, Vault

FLAGS = ("-std=gnu11", "-Os", "-s", "-static", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections")
COMPILE_TIMEOUT_S = 600.0


def ensure_guestd(vault: Vault, architecture: str, progress: Progress) -> Part:
    """The part ``guestd`` with the file ``guestd``. Raises Unavailable (no sources, no compiler, does not compile)."""
    return _ensure(vault, "guestd", guest_sources(), architecture, progress)


def guestd_key(architecture: str) -> str:
    """What the part ``guestd`` is recorded under, if it is made from the sources that are here now."""
    return _key(guest_sources(), architecture)


def ensure_emulated_init(vault: Vault, architecture: str, progress: Progress) -> Part:
    """The part ``emulated-init`` with the file ``emulated-init``. Raises Unavailable."""
    return _ensure(vault, "emulated-init", [Path(__file__).with_name("emulated_init.c")], architecture, progress)


def guest_sources() -> list[Path]:
    """guestd's C files and headers, in the installed package or in the checkout that it was installed from."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "guest", package.parents[1] / "guest"):
        if any(folder.glob("*.c")):
            return sorted([*folder.glob("*.c"), *folder.glob("*.h")])
    raise Unavailable(
        "the sources of guestd are missing from this installation",
        hint="Install Perdure from a release or from a complete checkout.",
    )


def _key(sources: Sequence[Path], architecture: str) -> str:
    digest = hashlib.sha256(" ".join((architecture, *FLAGS)).encode())
    for path in sources:
        digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _ensure(vault: Vault, name: str, sources: Sequence[Path], architecture: str, progress: Progress) -> Part:
    key = _key(sources, architecture)
    part = vault.get(name, key)
    if part is not None:
        return part
    what = f"compiling {name}"
    progress(what, 0, 0)
    with vault.workshop() as workshop:
        program = workshop / name
        _compile([path for path in sources if path.suffix == ".c"], program, architecture)
        part = vault.put(name, key, {"size_bytes": str(program.stat().st_size)}, {name: program})
    progress(what, 1, 1)
    return part


def _compile(sources: Sequence[Path], program: Path, architecture: str) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-musl", *FLAGS]
    command += ["-o", str(program), *map(str, sources)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"compiling {program.name} took longer than {COMPILE_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise Unavailable(
            f"{program.name} did not compile: {done.stderr.strip()[-2000:]}",
            hint="The compiler comes with: pip install 'perdure[build]'" if "No module named" in done.stderr else "",
        )

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
    folder = guest_sources()
    return _ensure(vault, "guestd", sorted(folder.glob("*.c")), sorted(folder.glob("*.h")), architecture, progress)


def ensure_emulated_init(vault: Vault, architecture: str, progress: Progress) -> Part:
    """The part ``emulated-init`` with the file ``emulated-init``. Raises Unavailable."""
    source = Path(__file__).with_name("emulated_init.c")
    return _ensure(vault, "emulated-init", [source], [], architecture, progress)


def guest_sources() -> Path:
    """Where guestd's C files are: in the installed package, or in the checkout that it was installed from."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "guest", package.parents[1] / "guest"):
        if any(folder.glob("*.c")):
            return folder
    raise Unavailable(
        "the sources of guestd are missing from this installation",
        hint="Install Perdure from a release or from a complete checkout.",
    )


def _ensure(
    vault: Vault, name: str, sources: Sequence[Path], headers: Sequence[Path], architecture: str, progress: Progress
) -> Part:
    digest = hashlib.sha256(" ".join((architecture, *FLAGS)).encode())
    for path in (*sources, *headers):
        digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    key = digest.hexdigest()
    part = vault.get(name, key)
    if part is not None:
        return part
    what = f"compiling {name}"
    progress(what, 0, 0)
    with vault.workshop() as workshop:
        program = workshop / name
        _compile(sources, program, architecture)
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

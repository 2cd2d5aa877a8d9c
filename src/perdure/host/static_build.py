"""The C programs: guestd and the init of the emulated host, which are PID 1 somewhere and static; pager and collector.

They are compiled with the C compiler of the ``ziglang`` package (it brings musl for every architecture) on first use,
and kept under the digest of their sources.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import Unavailable
from perdure.host.progress import Progress
from perdure.host.vault import Part, Vault

STATIC = (
    *("-std=gnu11", "-Os", "-s", "-static", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"),
    *("-fno-unwind-tables", "-fno-asynchronous-unwind-tables"),  # a fifth of guestd: nothing in C unwinds
)
# The collector is static because it starts quicker: that counts where everything is 40 times slower.
QUICK = tuple("-O2" if flag == "-Os" else flag for flag in STATIC)
# The pager loads the system's libzstd, so it is linked with the system's C library; from 2.34 on that has dlopen in it.
DYNAMIC = ("-std=gnu11", "-O2", "-s")
GLIBC = "gnu.2.34"
COMPILE_TIMEOUT_S = 600.0


def ensure_guestd(vault: Vault, architecture: str, progress: Progress) -> Part:
    """The part ``guestd`` with the file ``guestd``. Raises Unavailable (no sources, no compiler, does not compile)."""
    return _ensure(vault, "guestd", guest_sources(), _Target(architecture, STATIC), progress)


def guestd_key(architecture: str) -> str:
    """What the part ``guestd`` is recorded under, if it is made from the sources that are here now."""
    return _key(guest_sources(), _Target(architecture, STATIC))


def ensure_emulated_init(vault: Vault, architecture: str, progress: Progress) -> Part:
    """The part ``emulated-init`` with the file ``emulated-init``. Raises Unavailable."""
    sources = [Path(__file__).with_name("emulated_init.c")]
    return _ensure(vault, "emulated-init", sources, _Target(architecture, STATIC), progress)


def ensure_pager(vault: Vault, architecture: str, progress: Progress) -> Part:
    """The part ``pager`` with the file ``pager``. Raises Unavailable."""
    return _ensure(vault, "pager", pager_sources(), _Target(architecture, DYNAMIC, GLIBC), progress)


def pager_key(architecture: str) -> str:
    """What the part ``pager`` is recorded under, if it is made from the sources that are here now."""
    return _key(pager_sources(), _Target(architecture, DYNAMIC, GLIBC))


def ensure_collector(vault: Vault, architecture: str, progress: Progress) -> Part:
    """The part ``collector`` with the file ``collector``. Raises Unavailable."""
    return _ensure(vault, "collector", collector_sources(), _Target(architecture, QUICK), progress)


def collector_key(architecture: str) -> str:
    """What the part ``collector`` is recorded under, if it is made from the sources that are here now."""
    return _key(collector_sources(), _Target(architecture, QUICK))


def guest_sources() -> list[Path]:
    """guestd's C files and headers, in the installed package or in the checkout that it was installed from."""
    return _sources("guest", "guestd")


def pager_sources() -> list[Path]:
    """The pager's."""
    return _sources("pager", "the pager")


def collector_sources() -> list[Path]:
    """The collector's."""
    return _sources("collector", "the collector")


@dataclass(frozen=True)
class _Target:
    architecture: str
    flags: Sequence[str]
    libc: str = ""  # as Zig names it; empty: musl, which comes with the compiler


def _sources(folder_name: str, what: str) -> list[Path]:
    package = Path(__file__).resolve().parents[1]
    for folder in (package / folder_name, package.parents[1] / folder_name):
        if any(folder.glob("*.c")):
            return sorted([*folder.glob("*.c"), *folder.glob("*.h")])
    raise Unavailable(
        f"the sources of {what} are missing from this installation",
        hint="Install Perdure from a release or from a complete checkout.",
    )


def _key(sources: Sequence[Path], target: _Target) -> str:
    digest = hashlib.sha256(" ".join((target.architecture, *target.flags, target.libc)).rstrip().encode())
    for path in sources:
        digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _ensure(vault: Vault, name: str, sources: Sequence[Path], target: _Target, progress: Progress) -> Part:
    key = _key(sources, target)
    part = vault.get(name, key)
    if part is not None:
        return part
    what = f"compiling {name}"
    progress(what, 0, 0)
    with vault.workshop() as workshop:
        program = workshop / name
        _compile([path for path in sources if path.suffix == ".c"], program, target)
        part = vault.put(name, key, {"size_bytes": str(program.stat().st_size)}, {name: program})
    progress(what, 1, 1)
    return part


def _compile(sources: Sequence[Path], program: Path, target: _Target) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{target.architecture}-linux-{target.libc or 'musl'}"]
    command += [*target.flags, "-o", str(program), *map(str, sources)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"compiling {program.name} took longer than {COMPILE_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise Unavailable(
            f"{program.name} did not compile: {done.stderr.strip()[-2000:]}",
            hint="The compiler comes with: pip install 'perdure[build]'" if "No module named" in done.stderr else "",
        )

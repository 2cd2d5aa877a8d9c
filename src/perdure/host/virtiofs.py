"""virtiofsd, which shares a folder with a VM: the C one of QEMU 7 (Debian 12) and the Rust one (Debian 13, Ubuntu)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd")


@dataclass(frozen=True)
class Virtiofsd:
    """The program, and which of the two it is."""

    program: Path
    is_rust: bool

    @staticmethod
    def find(places: Sequence[str] = PLACES) -> Virtiofsd | None:
        """The first that runs here."""
        on_path = shutil.which("virtiofsd")
        for place in (*([on_path] if on_path else []), *places):
            if not Path(place).is_file():
                continue
            try:
                # Only the Rust one names --shared-dir in its help; where it goes differs between versions.
                done = subprocess.run([place, "--help"], capture_output=True, text=True, timeout=10, check=False)
            except (OSError, subprocess.TimeoutExpired):
                continue
            return Virtiofsd(Path(place), "--shared-dir" in done.stdout + done.stderr)
        return None

    def command(self, folder: Path, socket: Path) -> list[str]:
        """How to share ``folder`` on ``socket`` until its one client goes away.

        ``cache=auto``: what one side changes the other sees within a second, and at its next open.
        """
        if self.is_rust:
            # Announced, mounts of this machine would be automounts in the VM, and an overlay enters none (EREMOTE).
            words = [f"--shared-dir={folder}", "--cache=auto", "--sandbox=chroot", "--no-announce-submounts"]
        else:
            words = ["-f", "-o", f"source={_escaped(folder)}", "-o", "cache=auto", "-o", "sandbox=chroot"]
        return [str(self.program), f"--socket-path={socket}", *words]


def _escaped(folder: Path) -> str:
    """In a list of -o options a comma ends the value."""
    return str(folder).replace("\\", "\\\\").replace(",", "\\,")

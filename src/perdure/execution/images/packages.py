"""A root file system from Debian packages, through ``mmdebstrap``: images on a machine that reaches no registry.

Packages come from where this machine's own apt gets them, by its settings (proxies and the like) and its keys.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from perdure.errors import ImageInvalid, InvalidValue, NoSpace, Unsupported

Progress = Callable[[str, int, int], None]

# Not installed at all: dpkg leaves them out when it unpacks. Licences stay.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
_KEPT = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")
# Removed at the end: caches and logs, and what this machine's apt settings left.
_REMOVED = (
    "/var/cache/apt/*",
    "/var/cache/debconf/*-old",
    "/var/lib/apt/lists/*",
    "/var/log/*",
    "/etc/apt/apt.conf.d/99mmdebstrap",
    "/etc/dpkg/dpkg.cfg.d/perdure",
)
_REMOVE = "rm -rf " + " ".join(f'"$1"{path}' for path in _REMOVED)
# What dpkg is told to leave out, mmdebstrap takes out of the essential packages by a slow program of its own while it
# unpacks them: nearly half of all the time. Under this name only dpkg finds it, and what was unpacked is removed.
_HIDE = 'mv "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$1"/etc/dpkg/dpkg.cfg.d/perdure'
_LEAVE_OUT = (
    f'find "$1"/usr/share -depth \\( {" -o ".join(f"""-path "$1{path}" """ for path in _LEFT_OUT)}\\) '
    + "".join(f'! -path "$1{path}" ' for path in _KEPT)
    + "\\( ! -type d -o -empty \\) -delete"
)
# Debian's packages leave most of Python's library uncompiled where the whole interpreter is not installed, and a
# microVM that starts from a fresh overlay would compile it at every start.
_COMPILE = 'test ! -x "$1/usr/bin/python3" || chroot "$1" python3 -m compileall -q /usr/lib/python3* >/dev/null || true'
_SETTINGS = ("Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::ForceIPv4", "Acquire::AllowInsecure")
# What cannot be installed is told before anything is downloaded. mmdebstrap sees that the lists are there already.
_CHECK = (
    'echo "I: running apt-get update..." >&2; export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"; '
    "apt-get update --error-on=any && apt-get install --simulate --yes {} >/dev/null"
)
_NAME = "abcdefghijklmnopqrstuvwxyz0123456789+-.:="


def bootstrap(
    target: Path, packages: Sequence[str], suite: str | None = None, progress: Progress | None = None
) -> None:
    """Write ``target``, a tar of the essential packages and ``packages`` (``NAME`` or ``NAME=VERSION``).

    ``suite`` is a release (``bookworm``); None: the release of this machine. Raises Unsupported where that cannot
    work, InvalidValue for what is no package name, ImageInvalid with apt's words when it fails, NoSpace.
    """
    for package in packages:
        if not package or package.startswith("-") or not set(package) <= set(_NAME + _NAME.upper() + "~_"):
            raise InvalidValue(f"{package!r} is no package name", hint="Give Debian package names: python3-minimal")
    program = shutil.which("mmdebstrap")
    if program is None:
        raise Unsupported("mmdebstrap is not installed", hint="Install it: apt-get install mmdebstrap")
    release = suite or _release()
    with tempfile.TemporaryDirectory(prefix="perdure-apt-") as folder:
        settings = Path(folder, "apt.conf")
        settings.write_text(_apt_settings())
        command = [program, "--variant=essential", "--format=tar", "--skip=output/dev", f"--aptopt={settings}"]
        command += [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
        command += [f"--dpkgopt=path-include={path}" for path in _KEPT]
        command.append("--dpkgopt=force-unsafe-io")  # nothing is lost when this dies: it starts anew
        command += [f"--setup-hook={_HIDE}", f"--extract-hook={_LEAVE_OUT}"]
        command += [f"--customize-hook={_COMPILE}", f"--customize-hook={_REMOVE}"]
        if packages:
            command.append(f"--include={','.join(packages)}")
            command.append(f"--setup-hook={_CHECK.format(shlex.join(packages))}")
        command += [release, str(target), *_sources(release, Path(folder))]
        _run(command, len(packages), progress)


def _run(command: list[str], count: int, progress: Progress | None) -> None:
    said: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                said.append(line.rstrip())
                if progress is not None and line.startswith("I: ") and "hook" not in line and "skipping" not in line:
                    progress(line[3:].strip(), 0, 0)
        except BaseException:
            process.terminate()  # it unmounts and removes its own folder
            raise
    if process.returncode != 0:
        text = "\n".join(said)
        if "No space left" in text:
            raise NoSpace("no space to install the packages", hint="Free some space under /tmp, then try again.")
        errors = [line for line in said if line.startswith("E: ")] or said[-1:]
        raise ImageInvalid(
            f"mmdebstrap failed: {errors[0] if errors else f'status {process.returncode}'}",
            hint="Check the package names and that apt-get update works on this machine; details hold all it said.",
            output=text[-8000:],
        )


def _release() -> str:
    """The code name of this machine's release (os-release(5))."""
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME" and value:
            return value.strip("\"'")
    raise Unsupported("this machine's release has no code name", hint="Name a Debian release: --suite bookworm")


def _apt_settings() -> str:
    """How this machine's apt reaches its sources, as apt.conf(5) lines."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    lines = [line for line in dump.stdout.splitlines() if line.startswith(_SETTINGS) and not line.endswith('"";')]
    return "\n".join([*lines, 'APT::Install-Recommends "false";', ""])


def _sources(release: str, folder: Path) -> list[str]:
    """Arguments that hand mmdebstrap this machine's own sources of ``release``, components and keys included."""
    found = [path for path in [Path("/etc/apt/sources.list")] if path.exists()]
    found += sorted(Path("/etc/apt/sources.list.d").glob("*.list")) + sorted(
        Path("/etc/apt/sources.list.d").glob("*.sources")
    )
    kept = []
    for number, path in enumerate(found):
        text = _of_release(path.read_text(errors="replace"), release, deb822=path.suffix == ".sources")
        if text:
            copy = folder / f"{number}{path.suffix}"
            copy.write_text(text)
            kept.append(str(copy))
    if not kept:
        raise Unsupported(
            f"this machine's apt has no source for {release}",
            hint=f"Add one to /etc/apt/sources.list.d, or leave --suite out for {_release()}.",
        )
    return kept


def _of_release(text: str, release: str, *, deb822: bool) -> str:
    """The entries of a sources file (sources.list(5)) whose suite is ``release``, its updates or its security."""
    suites = {release, f"{release}-updates", f"{release}-security", f"{release}/updates"}
    if not deb822:
        lines = [line for line in text.splitlines() if line.startswith("deb ") and suites & set(line.split())]
        return "".join(f"{line}\n" for line in lines)
    stanzas = []
    for stanza in text.split("\n\n"):
        fields = dict(line.split(":", 1) for line in stanza.splitlines() if ":" in line and line[0] not in "# \t")
        if suites & set(fields.get("Suites", "").split()) and fields.get("Enabled", "yes").strip() != "no":
            stanzas.append(stanza.strip("\n"))
    return "\n\n".join(stanzas) + "\n" if stanzas else ""

"""Runs of pip (``server.pipcall``): the wheels of what an agent requires, and why they are not to be had.

pip chooses, and pip's own settings say where from (pip.conf, ``PIP_INDEX_URL`` … of the server's environment).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path

from perdure.errors import AgentInvalid, AssetTampered, NoSpace, PerdureError, TooLarge, Unavailable
from perdure.formats.scriptblock import Needs
from perdure.runs.pack import Python
from perdure.runs.ports import Progress

NOT_THIS_PYTHON = 3  # exit status of ``pipcall``, which is not imported: it is all of pip
LOOK_S = 0.5  # at how much there is by now
TOLD = 2000  # characters of what pip says that are passed on
_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}  # of manylinux_2_N (PEP 600)
_REFUSED = re.compile(r"(?:No matching distribution found for|that satisfies the requirement) (.+?)(?: \(from|$)", re.M)


async def download(
    needs: Needs, python: Python | None, folder: Path, *, max_bytes: int, progress: Progress
) -> list[Path]:
    """The wheels of all that is needed, in ``folder``, which is to be there and empty. python: None is this one."""
    wheels, log = folder / "wheels", folder / "log"
    (folder / "tmp").mkdir()
    order = {
        "parent": os.getpid(),
        "requirements": needs.packages,
        "requires_python": needs.python,
        "folder": str(wheels),
        "log": str(log),
        "python": None if python is None else _order(python),
    }
    # It is asked again less often than pip would: who starts a run waits for it.
    env = {"PIP_RETRIES": "2", **os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONUNBUFFERED": "1"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "perdure.server.pipcall"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=env,
    )
    said: list[str] = []
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode())
        process.stdin.close()
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(_listen(process, said, progress))
            watching = group.create_task(_watch(folder, max_bytes))
            await listening
            watching.cancel()
    except* TooLarge as errors:
        raise errors.exceptions[0] from None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    if process.returncode != 0:
        raise _refusal(process.returncode or 0, needs, python, "".join(said), _read(log))
    found = sorted(wheels.iterdir())
    if wrong := [path.name for path in found if path.suffix != ".whl"]:
        raise AgentInvalid(f"{wrong[0]} is no wheel", hint="Put the package into the image, built.")
    return found


async def _listen(process: asyncio.subprocess.Process, said: list[str], progress: Progress) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        text = line.decode("utf-8", "replace")
        said.append(text)
        words = text.split()
        if words[:1] == ["Downloading"] or words[:2] == ["Using", "cached"]:
            progress(f"fetching {words[-1] if len(words) == 1 else _name(words)}", 0, 0)
        elif words[:1] == ["Collecting"]:
            progress(f"looking for {' '.join(words[1:])}", 0, 0)
    await process.wait()


def _name(words: list[str]) -> str:
    """Of "Downloading https://…/x-1.0-py3-none-any.whl (12 kB)", without where from: that may have a password."""
    place = next((word for word in words if ".whl" in word), "")
    return " ".join([place.rpartition("/")[2], *words[words.index(place) + 1 :]]) if place else words[-1]


async def _watch(folder: Path, max_bytes: int) -> None:
    while True:
        sizes = [await asyncio.to_thread(_size, folder / name) for name in ("tmp", "wheels")]
        size_bytes = max(sizes)  # it fetches into the one, and copies all into the other
        if size_bytes > max_bytes:
            raise too_large(max_bytes)
        await asyncio.sleep(LOOK_S)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.whl"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            pass  # moved just now
    return total


def too_large(max_bytes: int) -> TooLarge:
    message = f"the packages that it requires have more than {max_bytes >> 20} MiB"
    return TooLarge(message, hint="Put the large ones into the image: `fcrun build`.", max_bytes=max_bytes)


def _read(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _refusal(status: int, needs: Needs, python: Python | None, said: str, log: str) -> PerdureError:
    """Why there are none, in our words where they are known, else in pip's."""
    for_what = "the server's Python" if python is None else python.said
    if status == NOT_THIS_PYTHON:
        message = f"it requires Python {needs.python}, and this would be {for_what}"
        return AgentInvalid(message, hint="Take another image, or correct requires-python.")
    if status < 0:
        return Unavailable(f"pip was ended by signal {-status}", hint="Start the run again.")
    if "DO NOT MATCH THE HASHES" in said:
        lines = [line.strip() for line in said.splitlines() if "Expected sha" in line or "Got  " in line]
        message = f"a package has other bytes than its index says: {'; '.join(lines)}"
        return AssetTampered(message, hint="Nothing was installed. Ask those who keep the index.")
    if "No space left on device" in said:
        return NoSpace("the disk is full: its packages do not fit", hint="Make room where the server's home is.")
    if "ResolutionImpossible" in said or "conflicting dependencies" in said:
        return AgentInvalid(f"what it requires does not go together:\n{_last(said)}", hint="Loosen a version.")
    if match := _REFUSED.search(said):
        return _none(match[1], for_what, said, log)
    if "Retrying (" in said or "Connection" in said:
        return _away(said)
    return AgentInvalid(f"pip does not bring what it requires:\n{_last(said)}", hint="Correct its # /// script block.")


def _none(wanted: str, for_what: str, said: str, log: str) -> PerdureError:
    name = re.split(r"[\s\[<>=!~;@]", wanted, maxsplit=1)[0]
    shape = re.sub(r"[-_.]+", "[-_.]+", name)  # names are the same where only these differ
    of_it = [line for line in log.splitlines() if re.search(rf"[/\s]{shape}\b", line, re.I)]
    if any("No sources permitted" in line for line in of_it) and not any("wheel's tags" in line for line in of_it):
        message = f"{wanted} has no wheel, only its source, and nothing is built"
        return AgentInvalid(message, hint="Put it into the image, or build its wheel and name the wheel's URL.")
    if any("wheel's tags" in line or "Requires-Python" in line for line in of_it):
        return AgentInvalid(f"{wanted} has no wheel for {for_what}", hint="Take another version, or another image.")
    if "Retrying (" in said:
        return _away(said)
    versions = re.search(r"\(from versions: (.*)\)", said)
    if versions is None or versions[1] == "none":
        hint = "Is its name right? pip.conf says which index is asked."
        return AgentInvalid(f"there is no package {wanted}", hint=hint)
    return AgentInvalid(f"there is no {wanted}", hint=f"There are: {versions[1][-TOLD:]}.")


def _away(said: str) -> Unavailable:
    hint = "Nothing was started. pip.conf and PIP_INDEX_URL of the server say which index is asked."
    return Unavailable(f"the package index does not answer:\n{_last(said)}", hint=hint)


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if not line.startswith(("Collecting", "  Downloading", "Looking in"))]
    return "\n".join(lines[-12:])[-TOLD:]


def _order(python: Python) -> dict[str, object]:
    return {"version": python.minor, "platforms": platforms(python), "markers": markers(python)}


def platforms(python: Python) -> list[str]:
    """What its wheels may be for, the nearest first: PEP 600, PEP 656."""
    of, newest = python.machine, int(python.libc_version.split(".")[1])
    if python.libc == "musl":
        return [*(f"musllinux_1_{minor}_{of}" for minor in range(newest, -1, -1)), f"linux_{of}"]
    found = list[str]()
    for minor in range(newest, 4, -1):
        found.append(f"manylinux_2_{minor}_{of}")
        if minor in _OLD_NAMES:
            found.append(f"{_OLD_NAMES[minor]}_{of}")
    return [*found, f"linux_{of}"]


def markers(python: Python) -> dict[str, str]:
    """Of PEP 508, as that Python has them; of its kernel nothing is known."""
    return {
        "implementation_name": "cpython",
        "implementation_version": python.version,
        "os_name": "posix",
        "platform_machine": python.machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": python.version,
        "python_version": python.minor,
        "sys_platform": "linux",
    }

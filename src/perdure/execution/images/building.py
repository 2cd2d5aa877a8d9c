"""Images from Dockerfiles, through ``buildah``.

A build has a folder of its own: the context, the storage of buildah, what comes out. buildah runs in its own mount and
process namespaces and dies with this process, so nothing of it can stay mounted or running, and the folder is all there
is to remove. Its RUN steps are processes of this machine in a chroot, not in a microVM: docs/design/0008-images.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from perdure.errors import ImageInvalid, InvalidValue, NoSpace, PerdureError, Unsupported
from perdure.execution.images import dockerfile, saving
from perdure.execution.images.image import Image
from perdure.execution.images.layers import oci_architecture
from perdure.execution.images.library import ImageLibrary
from perdure.formats.references import full_name
from perdure.model import DockerfileBuild

Say = Callable[[str], None]  # a piece of what the build says
Bring = Callable[[str], Awaitable[None]]  # pull an image into the library
INSTALL = "Install it: apt-get install buildah"
_LINE_MAX = 1 << 20


async def build(
    library: ImageLibrary, wish: DockerfileBuild, context: Path, folder: Path, say: Say, bring: Bring
) -> list[Image]:
    """The image, once for each name. ``context``: a tar; ``folder``: empty, for what is made meanwhile.

    Raises Unsupported without buildah, InvalidValue for what is asked wrongly, ImageInvalid with buildah's last words
    where a step fails, NoSpace. Cancelled, it has ended all that it began.
    """
    names = [full_name(name) for name in wish.names]
    _check(wish)
    root = folder / "context"
    root.mkdir()
    await _unpack(context, root)
    file = _inside(root, wish.dockerfile)
    found = dockerfile.images(file.read_text(errors="replace"), wish.arguments)
    command = await _buildah(folder, found)
    for name in found:
        if await _is_here(library, name, bring, say, again=wish.pull):
            await _hand_over(library, name, command, folder)
    identity = folder / "id"
    argv = [*command, "build", "--isolation", "chroot", "--format", "docker", "--layers=false"]
    argv += [f"--signature-policy={folder / 'policy.json'}", "--iidfile", str(identity), "--file", str(file)]
    argv += [f"--build-arg={name}={value}" for name, value in wish.arguments.items()]
    argv += [f"--label={name}={value}" for name, value in wish.labels.items()]
    argv += [f"--target={wish.target}"] * bool(wish.target)
    await _run([*argv, "--identity-label=false", str(root)], folder, say)
    archive = folder / "built.tar"
    pushed = f"docker-archive:{archive}"
    policy = f"--signature-policy={folder / 'policy.json'}"
    await _run([*command, "push", policy, "--quiet", identity.read_text().strip(), pushed], folder, None)
    built = await asyncio.to_thread(library.load_archive, archive, name=names[0] if names else "")
    return built + [await asyncio.to_thread(library.tag, built[0].digest, name) for name in names[1:]]


def _check(wish: DockerfileBuild) -> None:
    if shutil.which("buildah") is None:
        raise Unsupported("buildah is not installed, which builds Dockerfiles", hint=INSTALL)
    here = f"linux/{oci_architecture()}"
    if wish.platform and wish.platform != here:
        raise Unsupported(f"--platform {wish.platform}: this machine builds and runs {here}", hint="Leave it out.")


async def _unpack(archive: Path, root: Path) -> None:
    """GNU tar makes links last and drops ``..``: nothing is written outside ``root``."""
    argv = ["tar", "--extract", "--file", str(archive), "--directory", str(root), "--no-same-owner"]
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, said = await process.communicate()
    if process.returncode != 0:
        text = said.decode(errors="replace").strip()
        if "No space left" in text:
            raise NoSpace("no space for the build context", hint="Free some space, then try again.")
        raise InvalidValue(f"the build context is no tar that can be unpacked: {text.splitlines()[0] if text else ''}")


def _inside(root: Path, name: str) -> Path:
    """A file of the context. Raises InvalidValue for what is not in it, or leads out of it."""
    path = root / name
    real = path.resolve()
    if name.startswith("/") or root.resolve() not in real.parents:
        raise InvalidValue(f"the Dockerfile {name} is not in the build context")
    if not real.is_file():
        raise InvalidValue(f"there is no {name} in the build context", hint="Name it: fcrun build -f FILE CONTEXT")
    return real


async def _buildah(folder: Path, images: Sequence[str]) -> list[str]:
    """How buildah is called, with a storage in ``folder`` that this file system can hold."""
    (folder / "policy.json").write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    (folder / "registries.conf").write_text(_registries(images))
    (folder / "registries.conf.d").mkdir()
    command = ["buildah", "--root", str(folder / "storage"), "--runroot", str(folder / "run")]
    command += ["--registries-conf", str(folder / "registries.conf")]
    command += ["--registries-conf-dir", str(folder / "registries.conf.d")]
    for driver in ("overlay", "vfs"):
        chosen = [*command, "--storage-driver", driver]
        try:
            await _run([*chosen, "info"], folder, None)
            return chosen
        except PerdureError:
            if driver == "vfs":
                raise
            shutil.rmtree(folder / "storage", ignore_errors=True)  # overlays cannot be stacked here
    raise AssertionError


def _registries(images: Sequence[str]) -> str:
    """As docker goes about names: those without a host are Docker Hub's, and this machine's own need no TLS."""
    lines = ['unqualified-search-registries = ["docker.io"]', 'short-name-mode = "disabled"']
    hosts = {name.partition("/")[0] for name in images if "/" in name}
    for host in sorted(hosts):
        if host.partition(":")[0] == "localhost" or host.startswith("127."):
            lines += ["[[registry]]", f"location = {json.dumps(host)}", "insecure = true"]
    return "\n".join(lines) + "\n"


async def _is_here(library: ImageLibrary, name: str, bring: Bring, say: Say, *, again: bool) -> bool:
    """The library has this image; it may have been pulled for that. Otherwise buildah has to find it."""
    try:
        is_here = bool(library.get(name).name)  # else it was found by a digest's beginning, which is no name here
    except PerdureError:
        is_here = False
    if is_here and not again:
        return True
    say(f"Pulling {name}\n")
    try:
        await bring(name)
    except (ImageInvalid, InvalidValue):
        return False  # it cannot run here, but a COPY may take files from it
    return True


async def _hand_over(library: ImageLibrary, name: str, command: Sequence[str], folder: Path) -> None:
    """Layers and all, under its name."""
    try:
        wanted = await asyncio.to_thread(saving.chosen, library, [name])
    except Unsupported:  # its disk alone is here: it came with a snapshot
        return
    if not wanted[0].names:
        return  # by a digest: buildah asks the registry
    archive = folder / "base.tar"
    await asyncio.to_thread(_write, library, wanted, archive)
    policy = f"--signature-policy={folder / 'policy.json'}"
    await _run([*command, "pull", policy, "--quiet", f"docker-archive:{archive}"], folder, None)
    archive.unlink()


def _write(library: ImageLibrary, wanted: list[saving.Wanted], path: Path) -> None:
    with path.open("wb") as file:
        file.writelines(saving.archive(library, wanted))


async def _run(argv: Sequence[str], folder: Path, say: Say | None) -> None:
    """Run buildah to its end; what it says goes to ``say`` as it comes. Raises ImageInvalid with its last words."""
    said: list[str] = []
    async with _started(argv, folder) as process:
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                text = line.decode(errors="replace")
                said = [*said[-20:], text]
                if say is not None:
                    say(text)
        except ValueError:
            raise ImageInvalid("a step of the build writes a line without end") from None
        status = await process.wait()
    if status == 0:
        return
    text = "".join(said).strip()
    if "no space left" in text.lower():
        raise NoSpace("no space for the build", hint="Free some space, then try again.")
    errors = [line.strip() for line in text.splitlines() if line.lower().startswith("error")] or text.splitlines()[-1:]
    raise ImageInvalid(f"buildah failed: {errors[-1] if errors else f'status {status}'}", output=text[-8000:])


@asynccontextmanager
async def _started(argv: Sequence[str], folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process, which is over afterwards, with all of its children and mounts."""
    around: list[str] = []
    if os.geteuid() == 0:  # what is not root's, buildah does in namespaces of its own
        around = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
        around.append("--mount-proc")
    (folder / "tmp").mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(folder / "tmp")}
    if (logins := Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker", "config.json")).exists():
        environment.setdefault("REGISTRY_AUTH_FILE", str(logins))
    # in this thread, which lives as long as the daemon: the signal comes when the thread ends that forked
    process = await asyncio.create_subprocess_exec(
        *around,
        *argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        limit=_LINE_MAX,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()  # with it goes the first process of its namespace, and so all in that
        await process.wait()

"""fcrund: builds the execution half, serves its API on ``run/fcrund.sock``, and ends in order.

The lock ``run/fcrund.lock`` is held for the daemon's whole life, so one daemon serves a home. Machines outlive it.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

from aiohttp import web

from perdure.errors import AlreadyRunning, PerdureError
from perdure.execution.images.library import ImageLibrary
from perdure.execution.sandboxes import keptdisks, reading
from perdure.execution.sandboxes.ground import Ground
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.snapshots.cache import FrameCache
from perdure.execution.snapshots.care import garbage
from perdure.execution.snapshots.store import Store
from perdure.host import certificate as certificates
from perdure.host.paths import Home
from perdure.model import settle
from perdure.node import compaction, doors, settings
from perdure.node.api import Api
from perdure.node.calls import Forwarder
from perdure.node.doors import Outside
from perdure.node.idleness import Idleness
from perdure.node.restarts import Restarts

GRACE_S = 2.0  # for open requests when the daemon ends
LEAVE_S = 15.0  # for a start, suspend or resume that is under way then
LOCK_TIMEOUT_S = 10.0  # for a former daemon that is just ending
LOCK_RETRY_S = 0.05

_log = logging.getLogger(__name__)


async def serve(home: Home, ready: asyncio.Event | None = None) -> None:
    """Run the node until SIGTERM, SIGINT or a shutdown request. The lock is held by the caller."""
    settle()
    loop = asyncio.get_running_loop()
    compacts = compaction.is_on(os.environ)
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    forwarder, images, ground = Forwarder(), ImageLibrary(home.images), Ground(home)
    limits = settings.load(home)
    frames = FrameCache(home.frames, limit_bytes=limits.frames_bytes)
    _sweep(home)
    await asyncio.to_thread(images.sweep)
    sandboxes = Sandboxes(
        home, ground, images, Store(home.store, frames), forwarder.answer, limits.disks_bytes, limits.admission
    )
    doors.raise_descriptors()
    listening = doors.listen_unix(home, limits.group)  # clients that come now wait until the records are read
    outside = _listen_outside(home, limits) if limits.listen else None
    await sandboxes.load()  # it ends what still built a template below the line,
    await asyncio.to_thread(garbage.sweep_templates, home.templates)  # of which this takes the rest
    api = Api(home, sandboxes, over.set, patience_s=limits.patience_s)
    runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=GRACE_S)
    await runner.setup()
    entrances = [api.door(runner, listening, limits.connections)]
    if outside is not None:
        entrances.append(api.door(runner, outside.listening, limits.connections, outside))
    for door in entrances:
        door.open()
    _log.info("serving %s, pid %d", home.root, os.getpid())
    background = [loop.create_task(ground.watch())]
    background.append(loop.create_task(keptdisks.watch(home.sandboxes, limits.disks_bytes)))
    background.append(loop.create_task(Idleness(sandboxes).run()))
    background.append(loop.create_task(Restarts(sandboxes).run()))
    if compacts:
        background.append(loop.create_task(compaction.Compactor(home, sandboxes).run()))
    if ready is not None:
        ready.set()
    await over.wait()
    _log.info("ending")
    home.socket("fcrund").unlink(missing_ok=True)  # who comes now starts another, which waits for the lock
    for task in background:
        task.cancel()
    await asyncio.wait(background)
    try:
        async with asyncio.timeout(LEAVE_S):
            await sandboxes.leave()
    except TimeoutError:
        _log.warning("ending while sandboxes start, suspend or resume: the next node reconciles them")
    for door in entrances:
        await door.close()
    api.end()
    await runner.cleanup()
    api.close()
    await forwarder.close()
    frames.close()


def _listen_outside(home: Home, limits: settings.Settings) -> Outside:
    """On TCP, with the certificate that was given, or one of its own."""
    if limits.tls_certificate and limits.tls_key:
        certificate, key = Path(limits.tls_certificate), Path(limits.tls_key)
    else:
        certificate, key = certificates.ensure(home.root / "tls", limits.listen.rpartition(":")[0].strip("[]"))
    tls, fingerprint = certificates.context(certificate, key), certificates.fingerprint(certificate)
    return Outside(doors.listen_tcp(limits.listen), tls, fingerprint)


def _sweep(home: Home) -> None:
    """Uploads and builds that a killed daemon left, and what it read of sandboxes."""
    for path in (*home.run.glob("upload-*"), *home.run.glob("build-*")):
        shutil.rmtree(path, ignore_errors=True)
    reading.sweep(home.run)


def lock(home: Home, timeout_s: float = LOCK_TIMEOUT_S) -> int:
    """The descriptor of the home's lock. Raises AlreadyRunning when a daemon keeps it."""
    descriptor = os.open(home.run / "fcrund.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if answers(home) or time.monotonic() > deadline:
                pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise AlreadyRunning(f"a node daemon (pid {pid}) serves {home.root} already", pid=pid) from None
            time.sleep(LOCK_RETRY_S)
            continue
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor


def answers(home: Home) -> bool:
    """A daemon listens on the home's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(home.socket("fcrund")))
        except OSError:
            return False
    return True


def run(home: Home) -> NoReturn:
    """In the foreground, logging to stderr."""
    home.make()
    lock(home)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    asyncio.run(serve(home))
    logging.shutdown()
    os._exit(0)  # transfers that stall are in threads, which an exit would wait for with the lock held


def detach(home: Home) -> int:
    """Start in the background and return when it serves; its log is ``run/fcrund.log``."""
    home.make()
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader, "rb") as told:
            word = told.read()
        if word != b"ready":
            sys.stderr.write(
                (word.decode(errors="replace") or f"it ended at once; see {home.run / 'fcrund.log'}") + "\n"
            )
        return 0 if word == b"ready" else 1
    os.close(reader)
    status = 1
    try:
        os.setsid()
        log = os.open(home.run / "fcrund.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = _serve_detached(home, writer)
    except BaseException as error:
        logging.getLogger(__name__).exception("fcrund failed")
        try:
            words = (
                "; ".join(filter(None, (error.message, error.hint))) if isinstance(error, PerdureError) else repr(error)
            )
            os.write(writer, words.encode())
        except OSError:
            pass  # it failed later, when nobody listens
    finally:
        logging.shutdown()
        os._exit(status)


def _serve_detached(home: Home, writer: int) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        lock(home)
    except AlreadyRunning:
        os.write(writer, b"ready")  # somebody else was faster
        return 0

    async def main() -> None:
        ready = asyncio.Event()
        serving = asyncio.create_task(serve(home, ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if ready.is_set():
            os.write(writer, b"ready")
            os.close(writer)
        waiting.cancel()
        await serving

    asyncio.run(main())
    return 0

"""One machine: Firecracker, its pager and its console, from start to a cause of death. Owned by one keeper.

Operations block their caller, not the keeper: while one waits for Firecracker the loop goes on relaying, and a
Firecracker or pager that dies meanwhile ends the operation at once. Firecracker runs in the keeper's jail, and all
names that are said to it are of files there; the working directory is the machine folder, which it does not see.
"""

from __future__ import annotations

import os
import time

from perdure.errors import InvalidValue, MachineFailed, NoSpace, PerdureError, from_json
from perdure.execution.machine import configuration
from perdure.execution.machine.api import Api
from perdure.execution.machine.states import MachineEvent, MachineState, after
from perdure.keeper import share
from perdure.keeper.captures import Captures
from perdure.keeper.collector import CAPTURED, Ground
from perdure.keeper.console import Console
from perdure.keeper.loop import READ, Loop
from perdure.keeper.pager import Pager
from perdure.linux import process
from perdure.linux.usage import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from perdure.keeper.folder import Below
    from perdure.keeper.jail import Jail
    from perdure.keeper.pager import Frames

_START_TIMEOUT_S = 30.0
_PEER_GRACE_S = 5.0  # between a pager that says its machine is gone and that machine's end
_DEATH_TIMEOUT_S = 5.0  # between a connection that breaks and the end of the process
_POLL_S = 0.002  # Firecracker does not say when its API socket is there


class Machine:
    """Firecracker and what serves it. ``on_exit(cause, detail)`` when it ends by itself after it came up.

    ``on_want(frames)``: its pager needs these frames of its layers (``keeper.pager``).
    """

    def __init__(
        self,
        loop: Loop,
        below: Below,
        jail: Jail,
        on_exit: Callable[[str, str], None],
        on_want: Callable[[Frames], None],
    ) -> None:
        self.state = MachineState.EMPTY
        self.backend = ""  # what its memory came from: "boot", "file" or "uffd"
        self.hindrance: MachineFailed | None = None  # why no machine can be started at all
        self.on_jailed: Callable[[], None] = lambda: None  # the jail is open, and the machine not started
        self._loop, self._below, self._jail = loop, below, jail
        self._on_exit, self._on_want = on_exit, on_want
        self._firecracker: process.Process | None = None
        self._pager: Pager | None = None
        self._console: Console | None = None
        self._api: Api | None = None
        self.on_resident: Callable[[], None] = lambda: None  # its memory is all there, and its pager has gone
        self._death: tuple[str, str] | None = None  # why the machine ended, once it has
        self._captures = Captures(loop)
        self._ground: Ground | None = None  # the template that its memory stands on
        self._ahead: tuple[str, str] | None = None  # the programs (Firecracker, pager) that were started ahead

    def stat(self) -> dict[str, Any]:
        return {
            "state": str(self.state),
            "firecracker_pid": self._firecracker.pid if self._firecracker else 0,
            "pager_pid": self._pager.process.pid if self._pager and not self._pager.resident else 0,
            "backend": self.backend,
            "pager": self._pager.stat() if self._pager else {},
            "resident": self._pager is None or self._pager.resident,
            "wanted": self.wanted,
            "usage": usage(self.pids),
        }

    @property
    def wanted(self) -> Frames:
        """What the pager waits for."""
        return list(self._pager.wanted) if self._pager else []

    def pager_have(self, frames: Frames) -> None:
        """Frames that the node has fetched. Does not block, nor do the two that follow; without a pager: nothing."""
        if self._pager:
            self._pager.have(frames)

    def pager_lost(self, message: str, hint: str) -> None:
        """What the pager waits for cannot be had: the machine ends with that cause."""
        if self._pager:
            self._pager.lost(message, hint)

    def pager_populate(self) -> None:
        """Bring the rest of the memory; then the pager goes away, and the machine lives on."""
        if self._pager:
            self._pager.populate()

    # Start

    def start_ahead(self, firecracker: str, pager: str) -> None:
        """Start the programs of a restore that is still to come. Raises what ``restore`` raises for them."""
        try:
            self._open_jail(firecracker)
            self._pager = Pager(self._loop, pager, self._jail, self._pager_ended, self._on_want)
            self._start(firecracker, huge_pages=False)
            self._ahead = (firecracker, pager)
        except BaseException:
            self._release()
            raise

    @property
    def is_ahead(self) -> bool:
        return self._ahead is not None

    @property
    def pids(self) -> list[int]:
        """Of the programs that run."""
        programs = (self._firecracker, self._pager.process if self._pager else None)
        return [program.pid for program in programs if program is not None]

    def _take_ahead(self, firecracker: str, pager: str) -> bool:
        """Whether these programs run already; any others that do are ended."""
        fits = self._ahead == (firecracker, pager)
        if self._ahead is not None and not fits:
            self._release()
        self._ahead = None
        return fits

    def boot(self, params: dict[str, Any]) -> dict[str, Any]:
        """Start a guest from its kernel. Parameters and answer: docs/design/0001-contracts.md, 3."""
        firecracker = configuration.text(params, "firecracker")
        requests = configuration.boot_requests(params)
        drives = configuration.drive_paths(params)
        lent = {
            configuration.KERNEL_PATH: configuration.text(params, "kernel"),
            configuration.INITRD_PATH: configuration.text(params, "initrd"),
        }

        def come_up() -> dict[str, Any]:
            self._take_ahead("", "")  # a boot is of another kind
            self._open_jail(firecracker)
            self._admit(params["memory_mib"] << 20, params)
            for name, path in lent.items():
                self._jail.lend(name, path)
            self._bind(drives)
            api = self._start(firecracker)
            for method, path, body in requests:
                api.call(method, path, body)
            self.backend = "boot"
            return {}

        return self._starting(come_up)

    def restore(self, params: dict[str, Any]) -> dict[str, Any]:
        """Start from a snapshot, or (``paused``) only load it. Parameters and answer as above; times in seconds."""
        state = configuration.text(params, "state")
        drives = configuration.drive_paths(params)
        swap = params.get("swap") or ()
        swapped = {name: path for name, path in drives.items() if swap is True or name in swap}
        memory = params.get("memory")
        if not isinstance(memory, dict) or memory.get("kind") not in ("file", "layers"):
            raise InvalidValue("the parameter 'memory' must be an object whose 'kind' is 'file' or 'layers'")
        disk = configuration.disk_limits(params)
        firecracker = configuration.text(params, "firecracker")
        pager = configuration.text(params, "pager") if memory["kind"] == "layers" or "pager" in params else ""

        def come_up() -> dict[str, Any]:
            began = time.monotonic()
            template = self._nearer(memory)
            is_ahead = self._take_ahead(firecracker, pager)
            self._open_jail(firecracker)
            self._admit(share.memory_bytes(memory), params)
            self._jail.copy(configuration.STATE_PATH, state)
            for name in swapped:
                self._jail.make(name, configuration.PLACEHOLDER_BYTES)
            self._bind({name: path for name, path in drives.items() if name not in swapped})
            if template is not None and memory.get("digest"):
                self._ground = Ground(template, configuration.text(memory, "digest"))
            if memory["kind"] == "layers":
                backend, source = "Uffd", configuration.PAGER_PATH
                if self._pager is None:
                    self._pager = Pager(self._loop, pager, self._jail, self._pager_ended, self._on_want)
                self._pager.serve(configuration.text(memory, "map"), template)
            else:
                backend, source = "File", configuration.MEMORY_PATH
                self._jail.lend(source, template or configuration.text(memory, "path"))
                if self._pager is not None:
                    self._pager.close()
                    self._pager = None
            prepared = time.monotonic()
            # Before the kernel tells of a missing page, it clears a huge one that it will not use. Where clearing takes
            # longer than the guest's timer tick (an emulated host), a vCPU does nothing else for ever.
            api = self._living() if is_ahead else self._start(firecracker, huge_pages=False)
            started = time.monotonic()
            api.load_snapshot(configuration.STATE_PATH, backend, source)
            self._bind(swapped)
            for name in swapped:
                api.swap_drive(name, name)
            if disk:
                for name in drives:
                    api.limit_drive(name, disk)
                share.limit_disk(self.pids[:1], drives.values(), disk)
            for limits in configuration.network_limits(params):
                api.limit_network(configuration.NIC, limits)
            if not params.get("paused"):
                api.resume()
            self.backend = backend.lower()
            return {
                "backend": self.backend,
                "prepare_s": round(prepared - began, 4),
                "start_s": round(started - prepared, 4),
                "load_s": round(time.monotonic() - started, 4),
            }

        answer = self._starting(come_up)
        if params.get("paused"):
            self.state = after(self.state, MachineEvent.PAUSE)
        return answer

    def _open_jail(self, firecracker: str) -> None:
        if self.hindrance is not None:
            raise self.hindrance
        self._jail.open(firecracker)
        self._captures.place = self._jail.root

    def _admit(self, memory_bytes: int, params: dict[str, Any]) -> None:
        cpus = share.cpus(params)
        self._jail.make_room(memory_bytes)
        share.limit(memory_bytes, cpus)
        self.on_jailed()

    def _bind(self, drives: dict[str, str]) -> None:
        for name, path in drives.items():
            if configuration.is_shared(name):
                self._jail.lend(name, path)
            else:
                self._jail.give(name, path)

    def _starting(self, come_up: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        self.state = after(self.state, MachineEvent.START)
        self._death = None
        self._captures.begin_anew()
        try:
            answer = come_up()
            self._check_alive()
        except BaseException as error:
            self._release()
            self.state = after(self.state, MachineEvent.FAILED)
            if isinstance(error, OSError):
                raise MachineFailed(f"the machine could not be started: {error}") from error
            raise
        self.state = after(self.state, MachineEvent.STARTED)
        return answer

    def _nearer(self, memory: dict[str, Any]) -> str | None:
        """The copy in tmpfs of the template that the parameters name, if they name one."""
        if "name" not in memory:
            return None
        source = configuration.text(memory, "path" if memory["kind"] == "file" else "template")
        return self._below.materialize(configuration.text(memory, "name"), source)

    def _start(self, firecracker: str, *, huge_pages: bool = True) -> Api:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._console = Console(self._loop, reading)
        try:
            argv = self._jail.command(firecracker, ["--api-sock", configuration.API_PATH, "--level", "Error"])
            self._firecracker = process.spawn(argv, cwd=".", env={}, output=writing, huge_pages=huge_pages, gains=False)
        finally:
            os.close(writing)
        self._loop.watch(self._firecracker.pidfd, READ, self._firecracker_ended)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self._api is None:
            self._check_alive()
            try:
                self._api = Api(self._jail.path(configuration.API_PATH), self._wait, self._await_death)
            except OSError:
                if time.monotonic() > deadline:
                    raise MachineFailed(f"Firecracker did not open its API within {_START_TIMEOUT_S:g} s") from None
                self._loop.turn(_POLL_S)
        return self._api

    # Life

    def pause(self) -> dict[str, Any]:
        state = after(self.state, MachineEvent.PAUSE)
        self._living().pause()
        self.state = state
        return {}

    def resume(self) -> dict[str, Any]:
        state = after(self.state, MachineEvent.CONTINUE)
        self._living().resume()
        self.state = state
        return {}

    def capture(self, params: dict[str, Any]) -> dict[str, Any]:
        """Take a snapshot and stay paused; its files wait in tmpfs for ``collect``. Parameters and answer as above.

        ``pause_s``: from the request until Firecracker was done. When it fails the machine is left as it was before.
        """
        if params.get("kind") not in ("full", "diff"):
            raise InvalidValue("the parameter 'kind' must be 'full' or 'diff'")
        program = configuration.text(params, "collector")
        was_running = self.state is MachineState.RUNNING
        began = time.monotonic()
        if was_running:
            self.pause()
        elif self.state is not MachineState.PAUSED:
            after(self.state, MachineEvent.PAUSE)  # raises
        try:
            kind = self._captures.take(
                params["kind"],
                program,
                self._ground,
                lambda kind: self._living().create_snapshot(kind.capitalize(), *CAPTURED),
            )
        except BaseException as error:
            if was_running and self.state is MachineState.PAUSED:
                self.resume()
            if isinstance(error, MachineFailed) and _free_bytes(self._jail.root or ".") < 1 << 20:
                raise NoSpace(
                    "the memory file system of the machines is full", hint="Suspend or remove sandboxes."
                ) from error
            raise
        return {"kind": kind, "pause_s": round(time.monotonic() - began, 4)}

    def collect(self, params: dict[str, Any]) -> dict[str, Any]:
        """Make a capture file of the last capture's memory in a folder, beside its state; the machine runs on or stays
        paused meanwhile.

        With ``end`` it is killed after it: one that stayed paused has then not run since. When it fails nothing of the
        files is left, and the next capture takes all memory.
        """
        folder = configuration.text(params, "folder")
        if not self._captures.is_waiting:
            raise InvalidValue("there is no capture to collect", hint="Node and launcher differ in version.")
        began = time.monotonic()
        if self._pager is not None:
            self._pager.ask()
        size = self._captures.collect(folder)
        report = self._pager.stat() if self._pager else {}
        if params.get("end"):
            self.end()
        return {
            "state": f"{folder}/state",
            "memory": f"{folder}/memory",
            "bytes": size,
            "collect_s": round(time.monotonic() - began, 4),
            "pager": report,
        }

    def end(self) -> None:
        """Kill the machine and release everything, in any state."""
        self.state = after(self.state, MachineEvent.END)
        self._captures.forget()
        self._release()

    # Death

    def _firecracker_ended(self, _mask: int) -> None:
        if self._firecracker is None:
            return
        if self._ahead is not None:
            self._lose_ahead()
            return
        status = self._firecracker.poll()
        if status is None:
            return
        if self._death is None:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            words = self._console.last_words() if self._console else ""
            cause = "machine-exited" if status == 0 else "machine-died"
            self._death = (cause, f"Firecracker {how}" + (f"; its last words: {words}" if words else ""))
        self._loop.forget(self._firecracker.pidfd)
        if self.state not in (MachineState.STARTING, MachineState.EMPTY):  # else who starts it sees it and releases
            self._died()

    def _lose_ahead(self) -> None:
        """One of the programs that wait has died: the next restore starts both."""
        self._ahead = None
        self._release()

    def _pager_ended(self, detail: str) -> None:
        if self._ahead is not None:
            self._lose_ahead()
            return
        ended = self._pager
        if ended is not None and ended.resident:
            self.on_resident()

        def check() -> None:
            if self._pager is ended and not (ended is not None and ended.resident):
                self._kill_for(("pager-died", detail or "the pager ended while its machine was alive"))

        if detail:
            check()
        else:  # it saw its machine end: so shall we, in a moment
            self._loop.after(_PEER_GRACE_S, check)

    def _kill_for(self, death: tuple[str, str]) -> None:
        """Kill Firecracker for a reason of ours; its end is then seen as any other."""
        if self._firecracker is not None and self._firecracker.poll() is None:
            self._death = self._death or death
            self._firecracker.kill()
        elif self._firecracker is None and self.state is MachineState.STARTING:
            self._death = death

    def _died(self) -> None:
        assert self._death is not None
        cause, detail = self._death
        self.state = after(self.state, MachineEvent.DIED)
        self._release()
        self._on_exit(cause, detail)

    def _check_alive(self) -> None:
        """Raises MachineFailed when the machine has ended, or what its pager failed with."""
        if self._death is not None:
            cause, detail = self._death
            if cause == "pager-died" and self._pager is not None and self._pager.failure:
                raise from_json(self._pager.failure)
            raise MachineFailed(f"the machine ended ({cause}): {detail}", cause=cause)

    def _await_death(self) -> None:
        """Firecracker hung up: it is about to end. Raises MachineFailed with the cause."""
        self._loop.run_until(lambda: self._death is not None, _DEATH_TIMEOUT_S)
        self._check_alive()

    def _living(self) -> Api:
        self._check_alive()
        if self._api is None:
            raise MachineFailed("there is no machine")
        return self._api

    def _wait(self, connection: socket.socket, timeout_s: float) -> None:
        """What ``Api`` waits with: the loop goes on, and a death ends it."""
        ready: list[int] = []
        fd = connection.fileno()
        self._loop.watch(fd, READ, ready.append)
        try:
            answered = self._loop.run_until(lambda: bool(ready) or self._death is not None, timeout_s)
        finally:
            self._loop.forget(fd)
        if not ready:
            self._check_alive()
        if not answered:
            raise MachineFailed(f"Firecracker did not answer within {timeout_s:g} s")

    def _release(self) -> None:
        """Let go of every process, descriptor and file; safe in any state."""
        if self._firecracker is not None:
            self._loop.forget(self._firecracker.pidfd)
            self._firecracker.kill()
            self._firecracker.wait()
            self._firecracker.close()
            self._firecracker = None
        if self._pager is not None:
            self._pager.close()
            self._pager = None
        if self._api is not None:
            self._api.close()
            self._api = None
        if self._console is not None:
            self._console.close()
            self._console = None
        if self._ground is not None:
            self._ground.close()
            self._ground = None
        self._jail.close()


def failure(error: BaseException) -> PerdureError:
    """The error to answer for whatever an operation raised."""
    return error if isinstance(error, PerdureError) else MachineFailed(f"{type(error).__name__}: {error}")


def _free_bytes(path: str) -> int:
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize

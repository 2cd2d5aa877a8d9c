"""The keeper: the process beside one machine that owns everything of it below the line.

It has at most one node connection, answers that node's requests one after the other, relays the guest's channel, and
listens on a control socket where a launcher hands it the connection of the next node. It lives while its machine or
its node does; the record of a machine that ended stays for a node to read (``keeper.folder``).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import deque

from perdure.errors import InvalidValue, MachineFailed, PerdureError, ProtocolError
from perdure.execution.machine import configuration
from perdure.execution.machine.states import MachineState
from perdure.keeper import line
from perdure.keeper.channel import Channel
from perdure.keeper.jail import Jail
from perdure.keeper.loop import READ, Loop, Stream
from perdure.keeper.machine import Machine, failure
from perdure.keeper.network import Network
from perdure.keeper.relay import Relays

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from perdure.keeper.folder import Below, MachineFolder
    from perdure.keeper.pager import Frames

_FLUSH_TIMEOUT_S = 5.0
_SAID_MAX = 4096


class Keeper:
    """The one keeper of this process; ``run`` returns when it has nothing left to keep."""

    def __init__(self, below: Below, sandbox: str, folder: MachineFolder | None = None) -> None:
        self.sandbox, self._below = sandbox, below
        self.folder = folder or below.machine(sandbox)
        self._loop = Loop()
        self._jail = Jail(below)
        self._machine = Machine(self._loop, below, self._jail, self._exited, self._want)
        self._machine.on_resident = self._resident
        self._channel = Channel(self._loop)
        self._machine.on_jailed = lambda: self._channel.open(self._jail.listen)
        self._network, self._relays = Network(self._loop), Relays(self._loop)
        self._node: Stream | None = None
        self._decoder = line.Decoder()
        self._requests: deque[tuple[Stream, dict[str, Any]]] = deque()
        self._exit: dict[str, Any] | None = None
        self._ended = False  # the node said ``end``: nothing of the sandbox stays here
        self._control: socket.socket | None = None
        self._on_become: Callable[[str, list[int]], None] | None = None  # while it is a spare

    def run(self, node_fd: int) -> None:
        """Take over the connection of the node that asked for this keeper, and keep."""
        self._settle()
        self._node_up(node_fd)
        self._keep()

    def run_spare(self, firecracker: str, pager: str, on_become: Callable[[str, list[int]], None]) -> None:
        """Start the programs, wait until a launcher hands over a sandbox's connection, and keep.

        ``on_become(sandbox, pids)``: this process is that sandbox's from now on, as are its children.
        """
        self._settle()
        self._on_become = on_become
        try:
            self._machine.start_ahead(firecracker, pager)
            while self._node is None and self._machine.is_ahead:
                self._loop.turn()
        except (PerdureError, OSError) as error:
            print(f"spare keeper: {failure(error)}", file=sys.stderr, flush=True)
        self._keep()  # without node or programs it ends; a node that came meanwhile tries the start itself, and is told

    def _settle(self) -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.umask(0o077)
        self._isolate()
        self.folder.make()
        os.chdir(self.folder.path)
        self._control = socket.socket(socket.AF_UNIX)
        self._control.bind("keeper.sock")
        self._control.listen(16)
        self._control.setblocking(False)
        self._loop.watch(self._control.fileno(), READ, self._handed_over)

    def _isolate(self) -> None:
        """Before anything is started. Where no jail is permitted, a node is told when it asks for a machine."""
        try:
            self._jail.enter()
        except MachineFailed as error:
            self._machine.hindrance = error
        self._network.open(tap_owner=max(0, self._jail.uid))

    def _keep(self) -> None:
        while not self._ended and (self._node is not None or self._machine_lives):
            # first: a spare may have been given its node, and heard it, while its programs were still starting
            while self._requests:
                self._handle(*self._requests.popleft())
            if not self._ended:
                self._loop.turn()
        self._close()

    @property
    def _machine_lives(self) -> bool:
        return self._machine.state not in (MachineState.EMPTY, MachineState.EXITED)

    def _release(self) -> None:
        """Let go of everything but the node's connection; the network goes with the process."""
        self._machine.end()
        self._channel.close()
        self._relays.close()
        if self._control is not None:
            self._loop.forget(self._control.fileno())
            self._control.close()
            self._control = None
        if self._exit is None or self._ended:
            self.folder.remove()
        else:
            self.folder.clear(keep_record=True)

    def _close(self) -> None:
        self._release()
        if self._node is not None:
            node = self._node
            self._loop.run_until(lambda: node.closed or not node.queued, _FLUSH_TIMEOUT_S)

    # Nodes come and go

    def _handed_over(self, _mask: int) -> None:
        assert self._control is not None
        try:
            accepted, _ = self._control.accept()
        except OSError:
            return
        with accepted:
            accepted.settimeout(1.0)  # a launcher sends at once; one that only looks whether we live closes at once
            try:
                said, fds, _, _ = socket.recv_fds(accepted, _SAID_MAX, 1)
            except OSError:
                return
        if fds and said[:1] == b"\1":
            self._relays.open(fds[0], line.decode_control(said[1:]))
        elif fds:
            if said != b"\0":
                self._become(said.decode())
            self._node_up(fds[0])

    def _become(self, sandbox: str) -> None:
        if self._on_become is not None:
            self.sandbox, folder = sandbox, self._below.machine(sandbox)
            self.folder.become(folder)
            self.folder = folder
            self._on_become(sandbox, [os.getpid(), *self._jail.pids, *self._machine.pids])
            self._on_become = None

    def _node_up(self, fd: int) -> None:
        """A node's connection, which has said its hello and waits: it replaces the one before."""
        self._node_down()
        self._decoder = line.Decoder()
        node = self._node = Stream(self._loop, fd, self._from_node, self._node_down)
        node.write(line.encode_control({"ok": self._stat()}))
        if self._machine.wanted:
            self._want(self._machine.wanted)  # the node before it may not have fetched them
        if not node.closed:
            self._channel.node_up(node)

    def _node_down(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            self._channel.node_down()
            node.close()

    def _from_node(self, data: bytes) -> None:
        node = self._node
        if node is None:
            return
        try:
            for kind, payload in self._decoder.feed(data):
                if kind == line.CONTROL:
                    request = line.decode_control(payload)
                    if str(request.get("op")).startswith("pager-"):
                        self._handle(node, request)  # at once: the request before it may wait for these very pages
                    else:
                        self._requests.append((node, request))
                else:
                    self._channel.frame(kind, payload)
        except ProtocolError as error:
            node.write(line.encode_control({"error": error.to_json()}))
            self._node_down()

    # Requests

    def _handle(self, node: Stream, request: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": request.get("id")}
        try:
            answer["ok"] = self._perform(request)
        except Exception as error:  # whatever it is: the node is told, and the keeper goes on
            if not isinstance(error, PerdureError):
                import traceback

                traceback.print_exc()
            answer["error"] = failure(error).to_json()
        node.write(line.encode_control(answer))

    def _perform(self, request: dict[str, Any]) -> dict[str, Any]:
        op = request.get("op")
        if op in ("boot", "restore"):
            if "network" in request:
                self._network.join(self.sandbox, configuration.network(request))
            try:
                return self._machine.boot(request) if op == "boot" else self._machine.restore(request)
            finally:
                if not self._machine_lives:
                    self._channel.close()
        if op == "pause":
            return self._machine.pause()
        if op == "continue":
            return self._machine.resume()
        if op == "capture":
            return {**self._machine.capture(request), "opened": self._network.opened}
        if op == "collect":
            collected = self._machine.collect(request)
            if not self._machine_lives:
                self._channel.close()
            return collected
        if op == "stat":
            return self._stat()
        if op == "pager-have":
            self._machine.pager_have(_frames(request))
            return {}
        if op == "pager-lost":
            message = configuration.text(request, "message")
            self._machine.pager_lost(message, str(request.get("hint") or ""))
            return {}
        if op == "pager-populate":
            self._machine.pager_populate()
            return {}
        if op == "join":
            self._network.join(self.sandbox, configuration.network(request))
            return {}
        if op == "names":
            self._network.list_names(request)
            return {}
        if op == "end":
            self._ended = True
            self._release()  # before the answer: the node may want a new keeper at once
            return {}
        raise InvalidValue(f"a keeper does not know the operation {op!r}", hint="Node and launcher differ in version.")

    def _stat(self) -> dict[str, Any]:
        return {"pid": os.getpid(), **self._machine.stat(), "exit": self._exit}

    def _want(self, frames: Frames) -> None:
        if self._node is not None:
            self._node.write(line.encode_control({"event": "pager-want", "frames": frames}))

    def _resident(self) -> None:
        if self._node is not None:
            self._node.write(line.encode_control({"event": "pager-resident"}))

    def _exited(self, cause: str, detail: str) -> None:
        self._channel.close()
        self._exit = self.folder.record_exit(cause, detail)
        if self._node is not None:
            self._node.write(line.encode_control({"event": "exited", **self._exit}))


def _frames(request: dict[str, Any]) -> Frames:
    frames = request.get("frames")
    if isinstance(frames, list) and all(
        isinstance(frame, list) and len(frame) == 2 and all(type(number) is int and number >= 0 for number in frame)
        for frame in frames
    ):
        return [(layer, number) for layer, number in frames]
    raise InvalidValue("the parameter 'frames' must be a list of pairs: number of the layer, number of the frame in it")

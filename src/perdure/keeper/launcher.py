"""The launcher: the warm process below the line that forks keepers. ``python -m perdure.keeper.launcher``

    (--unix PATH | --tcp PORT) --token-file FILE --below FOLDER [--after FILE] [--processors LIST] [--guard LIST]

One thread. It answers as soon as it listens and imports what keepers need while it is idle, so a keeper starts with a
fork. Each connection says hello with the token and one wish (docs/design/0001-contracts.md, 3). Keepers do not need
it once they run: a launcher that starts finds them by their control sockets. It watches all by pidfd, and cleans up
after one that died (``keeper.keepers``).
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import socket
import sys
import time
from _operator import _compare_digest  # what hmac.compare_digest is, without hashlib's import time

from perdure.errors import AlreadyRunning, InvalidValue, MachineFailed, NoRights, NotFound, PerdureError, ProtocolError
from perdure.keeper import line
from perdure.keeper.folder import Below, checked_name
from perdure.keeper.keepers import Keepers
from perdure.keeper.loop import READ, Loop, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from perdure.keeper.program import Program
    from perdure.keeper.spares import Spares

_WARM = ("perdure.keeper.keeper", "perdure.keeper.program", "perdure.keeper.spares", "perdure.keeper.hostnetwork")
_HELLO_TIMEOUT_S = 10.0
_MACHINES_TIMEOUT_S = 60.0
_LOOK_S = 0.02
_HAND_OVER_TIMEOUT_S = 1.0
_FILES_MAX = 1 << 16  # of a keeper: each connection to a published port takes six


class Launcher:
    """Serves one listening socket. ``run`` never returns."""

    def __init__(
        self,
        listener: socket.socket,
        token: str,
        below: Below,
        after: str = "",
        processors: frozenset[int] = frozenset(),
        guard: str = "",
    ) -> None:
        """``after``: no keeper is forked before this file is there: KVM is still being loaded. ``processors``: keepers,
        programs and all that they start run on these only; none: on any. ``guard``: no machine reaches these networks
        (ADDRESS/PREFIX, parted by commas)."""
        self._listener, self._token, self._below = listener, token.encode(), below
        self._after, self._processors, self._guard = after, processors, guard
        self._loop = Loop()
        self._keepers = Keepers(self._loop, below)
        self._callers: set[_Caller] = set()
        self._cold = list(_WARM)
        self._spare_keepers: Spares | None = None

    def run(self) -> None:
        self._listener.setblocking(False)
        self._loop.watch(self._listener.fileno(), READ, self._accept)
        while self._cold:
            self._loop.turn(0)
            self._warm_up()
        self._keepers.adopt()
        self._below.clear_spares()
        while True:
            self._loop.turn()

    def _warm_up(self) -> None:
        """Import one more module that keepers need."""
        if self._cold:
            __import__(self._cold.pop(0))
            if not self._cold:
                gc.collect()
                gc.freeze()  # so that a keeper's collector does not touch, and thereby copy, what it shares with us

    # Callers

    def _accept(self, _mask: int) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return
        if accepted.family != socket.AF_UNIX:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._callers.add(_Caller(self, self._loop, accepted.detach()))

    def drop(self, caller: _Caller) -> None:
        self._callers.discard(caller)

    def serve(self, caller: _Caller, hello: dict[str, Any]) -> None:
        """Do what a hello wishes. Raises PerdureError: the caller is told."""
        token = hello.get("token")
        if not isinstance(token, str) or not _compare_digest(token.encode("utf-8", "surrogatepass"), self._token):
            raise NoRights("the launcher does not accept this token", hint="Restart it: fcrun host stop")
        if hello.get("op") != "hello" or hello.get("version") != line.VERSION:
            raise ProtocolError(
                f"the launcher speaks version {line.VERSION} of the line, not {hello.get('version')!r}",
                hint="Restart it: fcrun host stop",
            )
        want = hello.get("want")
        if want == "ping":
            facts = {"pid": os.getpid(), "version": line.VERSION, "python": sys.version.split()[0]}
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            caller.answer({**facts, "keepers": len(self._keepers), "memory_bytes": memory})
        elif want == "run":
            caller.program = self._run(caller, hello)
        elif want == "look":
            _look(hello)
            caller.answer({})
        else:
            while self._cold:
                self._warm_up()
            from perdure.keeper import hostnetwork

            if want == "list":
                caller.answer({"keepers": self._keepers.report()})
            elif want == "forget":
                self._forget(_sandbox(hello))
                caller.answer({})
            elif want == "kill":
                self._kill(_sandbox(hello))
                caller.answer({})
            elif want == "forget-network":
                hostnetwork.remove_bridge(str(hello.get("bridge")))
                caller.answer({})
            elif want == "spawn":
                self._spawn(caller, _sandbox(hello), _parts(hello))
            elif want == "attach":
                self._hand_over(caller, _sandbox(hello), b"\0")
            elif want == "dial":
                wish = {name: hello.get(name) for name in ("protocol", "port")}
                self._hand_over(caller, _sandbox(hello), b"\1" + json.dumps(wish).encode())
            else:
                raise InvalidValue(f"the launcher does not know the wish {want!r}")

    @property
    def _spares(self) -> Spares:
        from perdure.keeper.spares import Spares

        if self._spare_keepers is None:
            self._spare_keepers = Spares(self._loop, self._below, self._be_spare)
        return self._spare_keepers

    def _forget(self, sandbox: str) -> None:
        if self._keepers.stays(sandbox):
            raise AlreadyRunning(f"sandbox {sandbox} has a living keeper", hint="End its machine first.")
        self._below.machine(sandbox).remove()

    def _kill(self, sandbox: str) -> None:
        if not self._keepers.kill(sandbox):
            raise MachineFailed(f"the keeper of sandbox {sandbox} does not die", hint="fcrun host stop ends all.")
        self._below.machine(sandbox).remove()

    def _spawn(self, caller: _Caller, sandbox: str, parts: tuple[str, str] | None) -> None:
        from perdure.linux import process

        self._await_machines()
        if self._keepers.stays(sandbox):
            raise AlreadyRunning(f"sandbox {sandbox} has a keeper already", hint="Attach to it.")
        if caller.closed:
            return
        fd = caller.detach()
        try:
            keeper = self._spares.take(parts, sandbox, fd) if parts else None
            if keeper is None:
                keeper = process.fork(lambda: self._be_keeper(sandbox, fd), keep=(fd,), die_with_parent=False)
        finally:
            os.close(fd)
        self._keepers.watch(sandbox, keeper)
        if parts:
            self._spares.wish(parts)

    def _await_machines(self) -> None:
        deadline = time.monotonic() + _MACHINES_TIMEOUT_S
        while not self._settled():
            if time.monotonic() > deadline:
                raise MachineFailed(
                    f"no machine can be started yet: {self._after} is not there",
                    hint="fcrun host stop, then try again.",
                )
            self._loop.turn(_LOOK_S)

    def _settled(self) -> bool:
        """Make the rules of the network, and then bind this process and all that it starts from now on. False: it is
        too early. While KVM is loaded, and while those rules are made, the processors are off for a moment, and Linux
        then forgets who was bound to them: nobody may be bound before."""
        if self._after and not os.path.exists(self._after):
            return False
        self._after = ""
        if self._guard:
            from perdure.keeper import hostnetwork

            hostnetwork.prepare(self._guard.split(","), f"{self._below.path}/network.made")
            self._guard = ""
        if self._processors:
            os.sched_setaffinity(0, self._processors)
            self._processors = frozenset()
        return True

    def _be_keeper(self, sandbox: str, fd: int) -> None:
        from perdure.keeper.keeper import Keeper
        from perdure.linux.cgroup import Cgroup

        os.setsid()
        cgroup = Cgroup.make(f"{self._keepers.cgroups}/{sandbox}")
        if cgroup is not None:
            cgroup.enter()
        Keeper(self._below, sandbox).run(fd)

    def _be_spare(self, name: str, parts: tuple[str, str]) -> None:
        from perdure.keeper.keeper import Keeper
        from perdure.linux.cgroup import Cgroup
        from perdure.linux.process import live_on

        def become(sandbox: str, pids: list[int]) -> None:
            live_on()
            cgroup = Cgroup.make(f"{self._keepers.cgroups}/{sandbox}")
            if cgroup is not None:
                cgroup.enter(pids)

        os.setsid()
        Keeper(self._below, name, self._below.spare(name)).run_spare(*parts, become)

    def _hand_over(self, caller: _Caller, sandbox: str, said: bytes) -> None:
        """Give a caller's connection to a sandbox's keeper, which is told what for."""
        if not self._keepers.lives(sandbox):
            record = self._below.machine(sandbox).read_exit() or {}
            raise NotFound(f"no keeper of sandbox {sandbox} lives", hint="Resume it from its last snapshot.", **record)
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(_HAND_OVER_TIMEOUT_S)  # one that stands still must not stop all others
            control.connect(self._below.machine(sandbox).control)
            fd = caller.detach()
            try:
                socket.send_fds(control, [said], [fd])
            finally:
                os.close(fd)

    def _run(self, caller: _Caller, hello: dict[str, Any]) -> Program:
        from perdure.keeper.program import Program

        self._settled()
        return Program(self._loop, hello, caller)


class _Caller:
    """A connection to the launcher, until its wish is done or it became a keeper's."""

    def __init__(self, launcher: Launcher, loop: Loop, fd: int) -> None:
        self._launcher, self._loop = launcher, loop
        self._decoder = line.Decoder()
        self.program: Program | None = None
        self._helloed = False
        self._stream = Stream(loop, fd, self._heard, self._gone)
        self._deadline = loop.after(_HELLO_TIMEOUT_S, self._gone)

    @property
    def queued(self) -> int:
        return self._stream.queued

    @property
    def closed(self) -> bool:
        return self._stream.closed

    def answer(self, value: dict[str, Any]) -> None:
        self.send({"ok": value})
        self.finish()

    def send(self, message: dict[str, Any]) -> None:
        self._stream.write(line.encode_control(message))

    def finish(self) -> None:
        """Close once all is sent."""
        self._stream.finish()
        self._launcher.drop(self)

    def detach(self) -> int:
        """Give the connection away."""
        self._launcher.drop(self)
        return self._stream.detach()

    def _heard(self, data: bytes) -> None:
        if self._helloed:
            return  # nothing more is expected of one that runs a program
        try:
            for kind, payload in self._decoder.feed(data):
                if kind != line.CONTROL:
                    raise ProtocolError(f"expected a hello on the line, got a frame of kind {kind}")
                self._helloed = True
                self._loop.cancel(self._deadline)
                self._launcher.serve(self, line.decode_control(payload))
                return
        except PerdureError as error:
            self.send({"error": error.to_json()})
            self.finish()
        except Exception as error:  # whatever a caller sends: the launcher goes on
            self.send({"error": NotFound(f"the launcher could not do it: {error}").to_json()})
            self.finish()

    def _gone(self) -> None:
        self._loop.cancel(self._deadline)
        self._launcher.drop(self)
        self._stream.close()
        if self.program is not None:
            self.program.close()


def _look(hello: dict[str, Any]) -> None:
    """The kernel asks again for names that are looked at, and forgets the files of those that are gone. ``all``: it
    forgets all names that nobody uses."""
    paths = hello.get("paths")
    if not isinstance(paths, list) or not all(isinstance(path, str) and "\0" not in path for path in paths):
        raise InvalidValue("what is to be looked at is a list of paths")
    for path in paths:
        try:
            os.lstat(path)
        except OSError:
            pass  # as it should be
    if hello.get("all"):
        from perdure.keeper import hostnetwork

        hostnetwork.write_file("/proc/sys/vm/drop_caches", "2")


def _sandbox(hello: dict[str, Any]) -> str:
    return checked_name(hello.get("sandbox"), "a sandbox id")


def _parts(hello: dict[str, Any]) -> tuple[str, str] | None:
    """The programs that a spawn names, so that they can be started ahead the next time."""
    named = (hello.get("firecracker"), hello.get("pager"))
    return (str(named[0]), str(named[1])) if all(isinstance(path, str) and path for path in named) else None


def _options(argv: list[str]) -> dict[str, str]:
    """``--name value`` pairs (argparse would cost the emulated host 0.2 s). Raises InvalidValue."""
    names = argv[::2]
    if len(argv) % 2 or not set(names) <= {
        "--unix",
        "--tcp",
        "--token-file",
        "--below",
        "--after",
        "--processors",
        "--guard",
    }:
        raise InvalidValue(__doc__ or "")
    options = dict(zip((name[2:] for name in names), argv[1::2], strict=True))
    if ("unix" in options) == ("tcp" in options) or not {"token-file", "below"} <= set(options):
        raise InvalidValue(__doc__ or "")
    return options


def _listen(options: dict[str, str]) -> socket.socket:
    if "tcp" in options:
        listener = socket.socket(socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(
            ("0.0.0.0", int(options["tcp"]))
        )  # the emulated host's card: QEMU forwards one loopback port to it
    else:
        if os.path.exists(options["unix"]):
            os.unlink(options["unix"])  # of a launcher that died: we hold the lock
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        listener.bind(options["unix"])
        os.umask(before)
    listener.listen(64)
    return listener


def _raise_files_limit() -> None:
    """For keepers, which inherit it: each connection to a published port takes six descriptors."""
    import resource

    wanted = max(_FILES_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (OSError, ValueError):
        pass  # not ours to raise: there are fewer connections at once


def main(argv: list[str]) -> None:
    options = _options(argv)
    below = Below(options["below"])
    below.make()
    lock = os.open(f"{below.path}/launcher.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AlreadyRunning(f"a launcher already serves {below.path}", hint="Use that one.") from None
    with open(options["token-file"], encoding="ascii") as file:
        token = file.read().strip()
    if not token:
        raise InvalidValue(f"the token file {options['token-file']} is empty")
    _raise_files_limit()
    processors = frozenset(int(number) for number in options.get("processors", "").split(",") if number)
    Launcher(_listen(options), token, below, options.get("after", ""), processors, options.get("guard", "")).run()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PerdureError as error:
        print(f"launcher: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)

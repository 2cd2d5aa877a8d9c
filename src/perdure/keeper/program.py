"""A program run below the line for a caller (benchmarks and tests), its output streamed."""

from __future__ import annotations

import binascii
import os
import signal

from perdure.errors import InvalidValue, MachineFailed
from perdure.keeper.loop import READ, Loop, Stream
from perdure.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Caller(Protocol):
        @property
        def queued(self) -> int: ...
        def send(self, message: dict[str, Any]) -> None: ...
        def finish(self) -> None: ...


_QUEUED_MAX = 1 << 20
_LOOK_AGAIN_S = 0.05


class Program:
    """Started by making one; ends with its caller. It is told ``{"output": base64}`` and, last, ``{"exit": n}``."""

    def __init__(self, loop: Loop, params: dict[str, Any], caller: Caller) -> None:
        """Raises InvalidValue, MachineFailed when the program cannot be started."""
        argv, env, cwd = params.get("argv"), params.get("env") or {}, params.get("cwd") or "/"
        if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
            raise InvalidValue("the parameter 'argv' must be a list of strings, at least one")
        if not isinstance(env, dict) or not isinstance(cwd, str):
            raise InvalidValue("the parameter 'env' must be an object, and 'cwd' a string")
        self._loop, self._caller = loop, caller
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = process.spawn(argv, cwd=cwd, env={**os.environ, **env}, output=writing, new_session=True)
        except OSError as error:
            os.close(reading)
            raise MachineFailed(f"cannot run {argv[0]} below the line: {error.strerror}") from None
        finally:
            os.close(writing)
        self._output = Stream(loop, reading, self._said, self._done)
        loop.watch(self._process.pidfd, READ, self._ended)

    def close(self) -> None:
        """Kill it with all that it started."""
        if self._process.pidfd >= 0:
            self._kill_group()
            self._release()

    def _said(self, data: bytes) -> None:
        self._caller.send({"output": binascii.b2a_base64(data, newline=False).decode()})
        if self._caller.queued > _QUEUED_MAX:
            self._output.pause()
            self._loop.after(_LOOK_AGAIN_S, self._go_on)

    def _go_on(self) -> None:
        if self._caller.queued > _QUEUED_MAX:
            self._loop.after(_LOOK_AGAIN_S, self._go_on)
        else:
            self._output.resume()

    def _ended(self, _mask: int) -> None:
        if self._process.poll() is not None:
            self._loop.forget(self._process.pidfd)
            self._kill_group()  # what it left behind would hold the pipe open
            self._done()

    def _done(self) -> None:
        """Both its end and that of its output have come."""
        status = self._process.status
        if status is None or not self._output.closed:
            return
        self._release()
        self._caller.send({"exit": status})
        self._caller.finish()

    def _kill_group(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _release(self) -> None:
        self._loop.forget(self._process.pidfd)
        self._output.close()
        self._process.kill()
        self._process.wait()
        self._process.close()

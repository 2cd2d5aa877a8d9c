"""The event loop of launcher and keeper, and the streams it moves. epoll(7) and nothing else.

asyncio would cost the emulated host half a second of imports for each start. A callback may itself turn the loop
(an operation waits for Firecracker while the channel goes on), so each callback must bear a spurious call.
"""

from __future__ import annotations

import heapq
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
READ_BYTES = 64 << 10


class Loop:
    """Calls ``callback(mask)`` for descriptors that are ready, and ``after`` callbacks when their time has come."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[int, Callable[[int], None]]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_number = 0

    def watch(self, fd: int, mask: int, callback: Callable[[int], None]) -> None:
        """Watch a descriptor, or change the mask. Mask 0 keeps it out of epoll (which always reports hang-ups)."""
        before, _ = self._watched.get(fd, (0, callback))
        self._watched[fd] = (mask, callback)
        if before and mask:
            if before != mask:
                self._epoll.modify(fd, mask)
        elif mask:
            self._epoll.register(fd, mask)
        elif before:
            self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        mask, _ = self._watched.pop(fd, (0, None))
        if mask:
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass  # its owner closed it first, which took it out

    def after(self, delay_s: float, callback: Callable[[], None]) -> int:
        """Call once after a delay; the number is for ``cancel``."""
        self._timer_number += 1
        heapq.heappush(self._timers, (time.monotonic() + delay_s, self._timer_number, callback))
        return self._timer_number

    def cancel(self, number: int) -> None:
        self._timers = [timer for timer in self._timers if timer[1] != number]
        heapq.heapify(self._timers)

    def turn(self, timeout_s: float | None = None) -> None:
        """Wait until something is ready, at most so long, and handle it."""
        if self._timers:
            left = max(0.0, self._timers[0][0] - time.monotonic())
            timeout_s = left if timeout_s is None else min(left, timeout_s)
        for fd, mask in self._epoll.poll(timeout_s):
            watched = self._watched.get(fd)
            if watched is not None and watched[0]:  # else a callback before it took it away
                watched[1](mask)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def run_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Turn until ``done()``. False: the time was over first."""
        deadline = time.monotonic() + timeout_s
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.turn(left)
        return True

    def close(self) -> None:
        self._epoll.close()


def harmless(callback: Callable[[int], None]) -> Callable[[int], None]:
    """The same, for what strangers cause: what goes wrong in it is written to the log, and ends nothing else."""

    def guarded(mask: int) -> None:
        try:
            callback(mask)
        except Exception:
            import traceback

            traceback.print_exc()

    return guarded


class Stream:
    """A descriptor (socket or pipe) that is read when wanted, and written through a queue. It owns it."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        on_data: Callable[[bytes], None],
        on_closed: Callable[[], None],
        *,
        on_sent: Callable[[int], None] | None = None,
        reading: bool = True,
    ) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.read_bytes = READ_BYTES  # the most that one ``on_data`` gets
        self._loop, self._on_data, self._on_closed, self._on_sent = loop, on_data, on_closed, on_sent
        self._reading = reading
        self._queue = bytearray()
        self._closing = False
        self._update()

    @property
    def queued(self) -> int:
        """Bytes that were written to this stream and not yet taken by the kernel."""
        return len(self._queue)

    @property
    def closed(self) -> bool:
        return self.fd < 0

    def write(self, data: bytes) -> None:
        """Send, or queue what does not fit now. A closed stream drops it."""
        if self.fd < 0 or self._closing or not data:
            return
        self._queue += data
        if len(self._queue) == len(data):
            self._send()

    def pause(self) -> None:
        self._reading = False
        self._update()

    def resume(self) -> None:
        self._reading = True
        self._update()

    def finish(self) -> None:
        """Close once everything queued is sent; nothing more is read."""
        self._closing, self._reading = True, False
        if not self._queue:
            self.close()
        else:
            self._update()

    def close(self) -> None:
        """Close now. ``on_closed`` is not called."""
        if self.fd >= 0:
            os.close(self.detach())

    def detach(self) -> int:
        """Give the descriptor back, still open."""
        fd, self.fd = self.fd, -1
        self._loop.forget(fd)
        return fd

    def _update(self) -> None:
        if self.fd >= 0:
            mask = (READ if self._reading else 0) | (WRITE if self._queue else 0)
            self._loop.watch(self.fd, mask, self._ready)

    def _ready(self, mask: int) -> None:
        if mask & (WRITE | select.EPOLLERR) and self._queue:
            self._send()
        if self.fd < 0 or not self._reading:
            return
        try:
            data = os.read(self.fd, self.read_bytes)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._on_data(data)
        else:
            self._broken()

    def _send(self) -> None:
        try:
            sent = os.write(self.fd, self._queue)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._broken()
            return
        del self._queue[:sent]
        if self._closing and not self._queue:
            self.close()
            return
        self._update()
        if sent and self._on_sent is not None:
            self._on_sent(sent)

    def _broken(self) -> None:
        self.close()
        self._on_closed()

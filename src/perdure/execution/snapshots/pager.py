"""The pager of one machine: serves its page faults from a memory map file (docs/formats/memory-map.md).

Runs in a child that the keeper forks, below the dotted line: light imports, and as few Python steps per byte as can
be. One loop serves; a second thread only decompresses ahead. A fault on a block of a layer decompresses its frame,
once, and puts all of it in place; a fault on the template or on zeros fills a window around it. Between faults it
pushes the working set that an earlier restore recorded, whose frames are decompressed ahead, beginning before
Firecracker has connected.

``report`` is one end of a stream socket pair; both sides write lines of JSON:
  keeper -> pager  {"op": "stat"}
  pager -> keeper  {"event": "stat", "faults", "stale_faults", "frames", "frames_total", "copied_bytes", "zero_bytes",
                    "prefetched", "cpu_s", "working_set": [blocks]}
                   {"event": "failed", "message", "hint", "details"}: then it raises, and the machine must be killed
It returns when the machine has ended, or ``report`` has.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import time
from bisect import bisect_right
from collections import deque

from perdure.errors import MachineFailed, PerdureError, SnapshotInvalid
from perdure.execution.snapshots.source import Source
from perdure.formats.memorymap import FRAME, TEMPLATE, ZERO
from perdure.linux.userfaultfd import (
    EVENT_PAGEFAULT,
    EVENT_REMOVE,
    PAGE,
    BusyError,
    GoneError,
    Userfaultfd,
    address_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TEMPLATE_WINDOW = 32  # blocks around a fault that are filled together: 128 KiB of the template …
ZERO_WINDOW = 512  # … or 2 MiB of zeros
READ_AHEAD_FRAMES = 4  # after a frame whose predecessor is in memory: 256 KiB
WORKING_SET_UNITS = 1024  # frames or windows
RECORD_S = 20.0  # faults within this time after the start belong to the working set (emulated guests are slow)
HANDSHAKE_BYTES_MAX = 1 << 20
HANDSHAKE_TIMEOUT_S = 10.0
SETTLE_MS = 1
_FIGURES = ("faults", "stale_faults", "frames", "copied_bytes", "zero_bytes", "prefetched")


def serve(listener: socket.socket, map_path: str, report: socket.socket, *, template: str | None = None) -> None:
    """Serve one machine until it ends. ``template``: a copy of the template's memory nearer than the map's own path.

    Raises what ``failed`` reports: SnapshotInvalid (a frame that does not verify), MachineFailed (the handshake).
    """
    try:
        with Source(map_path, template) as source:
            accepted = _accept(listener, report, list(source.map.hot))
            if accepted is None:
                return
            with accepted:
                regions, fd = _handshake(accepted, source.map.blocks)
                with Userfaultfd(fd) as memory:
                    Pager(source, regions, memory, accepted, report).run()
    except (PerdureError, OSError) as error:
        known = error if isinstance(error, PerdureError) else MachineFailed(f"the pager failed: {error!r}")
        _say(report, {"event": "failed", **known.to_json()})
        raise


class Pager:
    """Serves the memory of one machine. ``regions``: (first block, end block, address) of each."""

    def __init__(
        self,
        source: Source,
        regions: list[tuple[int, int, int]],
        memory: Userfaultfd,
        connection: socket.socket,
        report: socket.socket,
    ) -> None:
        self._source = source
        self._map = source.map
        self._regions = regions
        self._memory = memory
        self._connection = connection
        self._report = report
        self._heard = b""
        self._faults: deque[int] = deque()  # blocks
        self._ahead: deque[int] = deque()  # frames that a reader in order will want next
        self._placed = bytearray(len(self._map.frame_layer))  # frames that are in memory
        self._filled: set[int] = set()  # first blocks of windows that are
        self._woken: set[int] = set()  # blocks whose fault was answered though their content was placed before
        self._removed: bytearray | None = None  # blocks that the balloon took: zeros from then on
        self._touched: list[int] = []  # first faults, in order
        self._record_until = time.monotonic() + RECORD_S
        self.figures = dict.fromkeys(
            ("faults", "stale_faults", "frames", "copied_bytes", "zero_bytes", "prefetched"), 0
        )

    def run(self) -> None:
        """Until the machine or the keeper ends. Raises SnapshotInvalid, OSError."""
        poller = select.poll()
        for fd in (self._memory.fd, self._connection.fileno(), self._report.fileno()):
            poller.register(fd, select.POLLIN)
        hot = deque(self._map.hot)
        try:
            while True:
                self._read_events()
                if self._faults:
                    while self._faults:
                        self._serve(self._faults.popleft())
                elif self._ahead:
                    number = self._ahead.popleft()
                    if not self._placed[number]:
                        self._place(number)
                elif hot:
                    self._push(hot.popleft())
                    if not hot:
                        _give_memory_back()
                else:
                    for fd, _ in poller.poll():
                        if fd == self._connection.fileno() and self._peer_is_gone():
                            return
                        if fd == self._report.fileno() and not self._answer():
                            return
        except GoneError:
            return

    # Faults

    def _read_events(self) -> None:
        for kind, first, second, _ in self._memory.read():
            if kind == EVENT_PAGEFAULT:
                self._faults.append(self._block(second))
            elif kind == EVENT_REMOVE:
                self._remove(first, second)

    def _serve(self, block: int) -> None:
        self.figures["faults"] += 1
        if self._removed is not None and self._removed[block]:
            self._fill(block, 1, 0)
        elif self._bring(block):
            if len(self._touched) < WORKING_SET_UNITS and time.monotonic() < self._record_until:
                self._touched.append(block)
        elif block not in self._woken:  # it came while its content was on the way: whoever waits may go on
            self.figures["stale_faults"] += 1
            self._woken.add(block)
            self._memory.wake(self._address(block), PAGE)
        else:  # it came again: the page is really not there
            self._woken.discard(block)
            self._bring_one(block)

    def _push(self, block: int) -> None:
        if self._bring(block):
            self.figures["prefetched"] += 1

    def _bring(self, block: int) -> bool:
        """Put the frame or window of a block into memory. False: it was put there before."""
        table = self._map
        run = bisect_right(table.first, block) - 1
        source = table.source[run]
        if source >= FRAME:
            number = source - FRAME
            if self._placed[number]:
                return False
            if number and self._placed[number - 1]:
                self._ahead.extend(range(number + 1, min(number + 1 + READ_AHEAD_FRAMES, len(self._placed))))
            self._place(number)
            return True
        window = ZERO_WINDOW if source == ZERO else TEMPLATE_WINDOW
        first = max(table.first[run], block // window * window)
        if first in self._filled:
            return False
        self._filled.add(first)
        end = table.first[run + 1] if run + 1 < len(table.first) else table.blocks
        count = min(end, (block // window + 1) * window) - first
        self._fill(first, count, self._source.template.address + first * PAGE if source == TEMPLATE else 0)
        return True

    def _place(self, number: int) -> None:
        """Put every block of a frame where it belongs."""
        table = self._map
        first, at = table.first, table.at
        self._placed[number] = 1
        content = self._source.frame(number)
        address = address_of(content)
        self.figures["frames"] += 1
        for run in table.by_frame[table.frame_runs[number] : table.frame_runs[number + 1]]:
            start = first[run]
            end = first[run + 1] if run + 1 < len(first) else table.blocks
            self._fill(start, end - start, address + at[run] * PAGE)

    def _bring_one(self, block: int) -> None:
        table = self._map
        run = bisect_right(table.first, block) - 1
        source = table.source[run]
        if source >= FRAME:
            content = self._source.frame(source - FRAME)
            self._fill(block, 1, address_of(content) + (table.at[run] + block - table.first[run]) * PAGE)
        else:
            self._fill(block, 1, self._source.template.address + block * PAGE if source == TEMPLATE else 0)

    def _fill(self, first: int, count: int, address: int) -> None:
        """Fill blocks from our ``address``; 0: with zeros. Blocks that the balloon took stay away."""
        end = first + count
        while first < end:
            try:
                if self._removed is None or not address or not any(self._removed[first:end]):
                    self._fill_range(first, end, address)
                    return
                if not self._removed[first]:
                    self._fill_range(first, first + 1, address)
                done = 1
            except BusyError as busy:  # a REMOVE event must be read first; it may concern these very blocks
                self._settle()
                done = busy.done
            first += done
            address += done * PAGE if address else 0

    def _fill_range(self, first: int, end: int, address: int) -> None:
        """Raises BusyError with the blocks that were done."""
        for low, high, base in self._regions:
            start, stop = max(first, low), min(end, high)
            if start >= stop:
                continue
            target, length = base + (start - low) * PAGE, (stop - start) * PAGE
            try:
                if address:
                    self._memory.copy(target, address + (start - first) * PAGE, length)
                    self.figures["copied_bytes"] += length
                else:
                    self._memory.zero(target, length)
                    self.figures["zero_bytes"] += length
            except BusyError as busy:
                raise BusyError(start - first + busy.done // PAGE) from None

    def _settle(self) -> None:
        """Read the event that keeps the address space busy; then its thread needs a moment to go on."""
        poller = select.poll()
        poller.register(self._memory.fd, select.POLLIN)
        poller.poll(SETTLE_MS)
        self._read_events()

    def _remove(self, start: int, end: int) -> None:
        if self._removed is None:
            self._removed = bytearray(self._map.blocks)
        first, count = self._block(start), (end - start) // PAGE
        self._removed[first : first + count] = b"\1" * count

    def _block(self, address: int) -> int:
        for low, high, base in self._regions:
            if 0 <= address - base < (high - low) * PAGE:
                return low + (address - base) // PAGE
        raise MachineFailed(f"a fault at {address:#x}, outside of the machine's memory")

    def _address(self, block: int) -> int:
        return next(base + (block - low) * PAGE for low, high, base in self._regions if low <= block < high)

    # The others

    def _peer_is_gone(self) -> bool:
        try:
            return not self._connection.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    def _answer(self) -> bool:
        """Answer what the keeper asks; False: it is gone."""
        try:
            data = self._report.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        *lines, self._heard = (self._heard + data).split(b"\n")
        for _ in lines:
            figures: dict[str, Any] = {
                **self.figures,
                "frames_total": len(self._placed),
                "cpu_s": round(time.process_time(), 4),
            }
            figures["working_set"] = self.working_set()
            _say(self._report, {"event": "stat", **figures})
        return bool(data)

    def working_set(self) -> list[int]:
        """What to push at the next restore: what was pushed at this one, and what was missing then."""
        known = list(dict.fromkeys((*self._map.hot, *self._touched)))
        return known[max(0, len(known) - WORKING_SET_UNITS) :]


def _accept(listener: socket.socket, report: socket.socket, hot: list[int]) -> socket.socket | None:
    """Firecracker's connection; None: the keeper is gone."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    poller.register(report, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == listener.fileno():
                return listener.accept()[0]
            if not report.recv(4096):
                return None
            _say(report, {"event": "stat", "working_set": hot})


def _handshake(connection: socket.socket, blocks: int) -> tuple[list[tuple[int, int, int]], int]:
    """(regions, descriptor): Firecracker sends one JSON array of regions, and the userfaultfd beside its first byte."""
    connection.settimeout(HANDSHAKE_TIMEOUT_S)
    text, fds = b"", []
    while True:
        data, received, _, _ = socket.recv_fds(connection, 1 << 16, 8)
        fds += received
        text += data
        try:
            described = json.loads(text)
            break
        except ValueError:
            if not data or len(text) > HANDSHAKE_BYTES_MAX:
                raise MachineFailed("Firecracker's handshake with the pager broke off") from None
    connection.settimeout(None)
    for other in fds[1:]:
        os.close(other)
    if not fds:
        raise MachineFailed("Firecracker sent no userfaultfd to the pager")
    regions = []
    try:
        for region in described:
            low = region["offset"] // PAGE
            regions.append((low, low + region["size"] // PAGE, region["base_host_virt_addr"]))
            if region.get("page_size", PAGE) not in (PAGE, PAGE >> 10):  # some versions gave KiB
                raise MachineFailed(f"pages of {region['page_size']} bytes are not served, only of {PAGE}")
    except (KeyError, TypeError) as error:
        raise MachineFailed(f"Firecracker's handshake with the pager does not read: {error!r}") from None
    if sum(high - low for low, high, _ in regions) != blocks:
        size = sum(high - low for low, high, _ in regions) * PAGE
        raise SnapshotInvalid(f"the machine has {size} bytes of memory, the snapshot {blocks * PAGE}: another layout")
    return sorted(regions), fds[0]


def _say(report: socket.socket, message: dict[str, Any]) -> None:
    try:
        report.setblocking(True)
        report.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        pass  # the keeper is gone: nobody is left to tell


def _give_memory_back() -> None:
    """The frames of the working set were many: let malloc return their pages (malloc_trim(3), glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

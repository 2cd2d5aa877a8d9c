"""A process whose memory a pager serves: what stands for Firecracker in tests of the pager.

``Machine`` starts this module as a program. It maps memory, registers it with userfaultfd, hands the descriptor to
the pager's socket as Firecracker does, and then touches what it is told to.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import socket
import subprocess
import sys
from typing import Any

from perdure.linux import userfaultfd
from perdure.linux.userfaultfd import FEATURE_EVENT_REMOVE, PAGE


class Machine:
    """One such process; ``regions`` are the lengths in blocks of which its memory consists. A context manager.

    It connects to the pager at once, or when it is sent ``connect`` (which it does not answer).
    """

    def __init__(self, socket_path: str, regions: list[int], *, connect: bool = True) -> None:
        argv = [sys.executable, "-m", "perdure.testing.faulting", socket_path, json.dumps(regions)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if connect:
            self.send("connect")

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def send(self, op: str, *args: int) -> None:
        """Begin an operation: ``read`` or ``touch FIRST COUNT``, ``write BLOCK BYTE``, ``remove FIRST COUNT``."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([op, *args]).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, op: str, *args: int) -> Any:
        self.send(op, *args)
        return self.answer()


def main() -> None:
    path, lengths = sys.argv[1], json.loads(sys.argv[2])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    fd = userfaultfd.open_descriptor()
    maps: list[tuple[mmap.mmap, int]] = []
    regions, offset = [], 0
    for number, length in enumerate(lengths):
        held = mmap.mmap(-1, length * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = ctypes.addressof(ctypes.c_char.from_buffer(held))
        if number == 0:
            userfaultfd.negotiate(fd, FEATURE_EVENT_REMOVE)
        userfaultfd.register(fd, address, length * PAGE)
        regions.append(
            {"base_host_virt_addr": address, "size": length * PAGE, "offset": offset * PAGE, "page_size": PAGE}
        )
        maps.append((held, offset))
        offset += length
    connection = socket.socket(socket.AF_UNIX)

    def place(block: int) -> tuple[mmap.mmap, int]:
        held, low = next((held, low) for held, low in reversed(maps) if low <= block)
        return held, (block - low) * PAGE

    for line in sys.stdin:
        op, *args = json.loads(line)
        result: Any = None
        if op == "connect":
            connection.connect(path)
            socket.send_fds(connection, [json.dumps(regions).encode()], [fd])
            continue
        if op == "read":
            found = hashlib.sha256()
            for block in range(args[0], args[0] + args[1]):
                held, at = place(block)
                found.update(held[at : at + PAGE])
            result = found.hexdigest()
        elif op == "touch":
            for block in range(args[0], args[0] + args[1]):
                held, at = place(block)
                result = held[at]
        elif op == "write":
            held, at = place(args[0])
            held[at] = args[1]
        elif op == "remove":
            held, at = place(args[0])
            address = ctypes.addressof(ctypes.c_char.from_buffer(held)) + at
            result = libc.madvise(address, args[1] * PAGE, mmap.MADV_DONTNEED)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

"""The pager of one machine: serves its page faults from a memory map file (docs/formats/memory-map.md).

Runs in a child that the keeper forks (below the line: light imports). ``report`` is one end of a stream socket pair;
both sides write lines of JSON:
  pager -> keeper  {"event": "ready"}                       may be ignored: the listener accepts before
                   {"event": "connected", "pid": n}         Firecracker's pid (SO_PEERCRED)
                   {"event": "stat", "faults", "copied_bytes", "zero_bytes", "prefetched", "working_set": [blocks]}
                   {"event": "failed", "message", "hint", "details"}   then it exits with 1: kill the VM
                   {"event": "gone"}                        the machine ended; exits with 0
  keeper -> pager  {"op": "stat"}                           answered with "stat"; end of file: the pager exits
"""

from __future__ import annotations

import socket


def serve(listener: socket.socket, map_path: str, report: socket.socket, *, template: str | None = None) -> None:
    """Serve one machine until it ends. ``template``: a copy of the template's memory nearer than the map's own path."""

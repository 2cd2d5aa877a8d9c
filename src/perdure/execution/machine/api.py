"""A client of Firecracker's API: HTTP/1.1 over a Unix socket, one connection, one request at a time.

``http.client`` would cost the emulated host a quarter of a second to import. What waits is the caller's: the keeper
goes on relaying while Firecracker works. Requests and fields: Firecracker's ``firecracker.yaml``, as of 1.12.
"""

from __future__ import annotations

import json
import socket

from perdure.errors import MachineFailed
from perdure.linux.readiness import readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CALL_TIMEOUT_S = 60.0
SNAPSHOT_TIMEOUT_S = 900.0  # a full snapshot of a large guest
_ANSWER_MAX = 1 << 20


def wait_readable(connection: socket.socket, timeout_s: float) -> None:
    """Block until the socket is readable. Raises MachineFailed when it is not in time."""
    if not readable(connection.fileno(), timeout_s):
        raise MachineFailed(f"Firecracker did not answer within {timeout_s:g} s")


class Api:
    """One Firecracker's API. Every method raises MachineFailed with Firecracker's own words when it refuses."""

    def __init__(
        self,
        path: str,
        wait: Callable[[socket.socket, float], None] = wait_readable,
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect; OSError while nothing listens at ``path`` yet. ``on_broken`` may raise a better reason than ours."""
        self._wait, self._on_broken = wait, on_broken
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, path: str, body: dict[str, Any], timeout_s: float = CALL_TIMEOUT_S) -> None:
        """One request, and its answer if that is a success."""
        payload = json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        try:
            self._socket.sendall(head.encode() + payload)
            status, answer = self._answer(timeout_s)
        except OSError as error:
            self._on_broken()
            raise MachineFailed(f"{method} {path}: the connection to Firecracker broke: {error}") from None
        if status >= 300:
            fault = _fault(answer)
            raise MachineFailed(f"Firecracker refused {method} {path} ({status}): {fault}", hint=_hint(fault))

    def _answer(self, timeout_s: float) -> tuple[int, bytes]:
        data = b""
        while True:
            head, found, body = data.partition(b"\r\n\r\n")
            if found:
                status, length = _parse_head(head)
                if len(body) >= length:
                    return status, body[:length]
            if len(data) > _ANSWER_MAX:
                raise MachineFailed("Firecracker's answer is larger than an answer can be")
            self._wait(self._socket, timeout_s)
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionResetError("it was closed")
            data += more

    # Requests after the boot (those of the boot are in ``configuration.boot_requests``)

    def pause(self) -> None:
        self.call("PATCH", "/vm", {"state": "Paused"})

    def resume(self) -> None:
        self.call("PATCH", "/vm", {"state": "Resumed"})

    def create_snapshot(self, kind: str, state: str, memory: str) -> None:
        """``kind`` "Full" or "Diff". The machine must be paused; the paths must not be files that back it."""
        body = {"snapshot_type": kind, "snapshot_path": state, "mem_file_path": memory}
        self.call("PUT", "/snapshot/create", body, SNAPSHOT_TIMEOUT_S)

    def load_snapshot(self, state: str, backend: str, path: str) -> None:
        """``backend`` "File" (a raw memory file) or "Uffd" (a pager's socket). The machine stays paused."""
        body = {
            "snapshot_path": state,
            "mem_backend": {"backend_type": backend, "backend_path": path},
            "enable_diff_snapshots": True,
            "resume_vm": False,
        }
        self.call("PUT", "/snapshot/load", body, SNAPSHOT_TIMEOUT_S)

    def swap_drive(self, drive_id: str, path: str) -> None:
        """Put another file in a drive's place; the guest sees its size."""
        self.call("PATCH", f"/drives/{drive_id}", {"drive_id": drive_id, "path_on_host": path})

    def limit_drive(self, drive_id: str, limits: dict[str, Any]) -> None:
        """Give a drive these limits (``RateLimiter``); they are in a snapshot from then on."""
        self.call("PATCH", f"/drives/{drive_id}", {"drive_id": drive_id, "rate_limiter": limits})

    def limit_network(self, nic: str, limits: dict[str, Any]) -> None:
        """Give an interface's both directions these limits (``RateLimiter`` of Firecracker's API)."""
        body = {"iface_id": nic, "rx_rate_limiter": limits, "tx_rate_limiter": limits}
        self.call("PATCH", f"/network-interfaces/{nic}", body)


def _parse_head(head: bytes) -> tuple[int, int]:
    """(status, Content-Length) of an answer's head."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    length = 0
    try:
        status = int(words[1])
        for header in lines[1:]:
            name, _, value = header.partition(":")
            if name.strip().lower() == "content-length":
                length = int(value)
    except (IndexError, ValueError):
        raise MachineFailed(f"Firecracker's answer is not HTTP: {head[:80]!r}") from None
    return status, length if status not in (204, 304) else 0


def _hint(fault: str) -> str:
    if "TSC scaling" in fault:
        return (
            "The snapshot was made on a processor whose time stamp counter runs at another frequency, and this one "
            "cannot scale it: restore it on a machine of the kind that it was made on."
        )
    return ""


def _fault(body: bytes) -> str:
    """Firecracker's ``fault_message``, or what it sent instead."""
    try:
        return str(json.loads(body)["fault_message"])
    except (ValueError, KeyError, TypeError):
        return body[:500].decode("utf-8", "replace") or "no reason given"

"""The part of a node's client that looks into sandboxes and takes them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

import msgspec

from perdure.client.transport import Progress, Transport
from perdure.model import Change, FileChange, ImageInfo, SandboxInfo, SandboxProcess, SandboxUsage


class ViewsClient:
    """Methods of ``NodeClient``; ``ref`` as there."""

    _http: Transport
    _progress: Progress | None

    def pause(self, ref: str) -> SandboxInfo:
        """Let none of its processors run; it keeps its memory, and its connections."""
        return msgspec.convert(self._http.call("POST", f"{_path(ref)}/pause"), SandboxInfo)

    def unpause(self, ref: str) -> SandboxInfo:
        return msgspec.convert(self._http.call("POST", f"{_path(ref)}/unpause"), SandboxInfo)

    def top(self, ref: str) -> list[SandboxProcess]:
        """What runs in it, by pid."""
        return msgspec.convert(self._http.call("GET", f"{_path(ref)}/top"), list[SandboxProcess])

    def stats(self, refs: Iterable[str] = (), *, everything: bool = False) -> list[SandboxUsage]:
        """What sandboxes use now: these, or all that run, are paused or suspended; ``everything``: all there are."""
        query: dict[str, Any] = {"sandbox": [*refs], "all": int(everything)}
        return msgspec.convert(self._http.call("GET", "/v1/stats", query=query), list[SandboxUsage])

    def changes(self, ref: str) -> list[Change]:
        """What its files differ in from its image, by path."""
        return msgspec.convert(self._http.call("GET", f"{_path(ref)}/changes"), list[Change])

    def detailed_changes(self, ref: str) -> list[FileChange]:
        """The same with type, mode, size and digest of what each path is now: every changed file is read."""
        answer = self._http.call("GET", f"{_path(ref)}/changes", query={"details": 1})
        return msgspec.convert(answer, list[FileChange])

    def changed_file(self, ref: str, path: str) -> bytes:
        """A file that the sandbox changed since its image. NotFound: it did not; InvalidValue: above 1 MiB."""
        with self._http.open("GET", f"{_path(ref)}/changes/content", query={"path": path}) as answer:
            return answer.read()

    def export(self, ref: str) -> Iterator[bytes]:
        """The tar of its whole root."""
        with self._http.open("GET", f"{_path(ref)}/export") as answer:
            yield from answer.chunks()

    def commit(
        self,
        ref: str,
        name: str = "",
        *,
        author: str = "",
        message: str = "",
        changes: Iterable[str] = (),
        pause: bool = True,
    ) -> ImageInfo:
        """A new image: the sandbox's, and what its files differ in. name: empty for none. pause: its workload stands
        still meanwhile. changes: as ``docker commit --change``: "CMD python3", "ENV A=b"."""
        body = {"name": name, "author": author, "message": message, "changes": [*changes], "pause": pause}
        answer = self._http.call("POST", f"{_path(ref)}/commit", json_body=body, progress=self._progress)
        return msgspec.convert(answer, ImageInfo)


def _path(ref: str) -> str:
    return f"/v1/sandboxes/{quote(ref, safe='')}"

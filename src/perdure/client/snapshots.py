"""The client of a node's store: its snapshots, and the care of them (``NodeClient.store``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

import msgspec

from perdure.client.transport import Progress, Transport
from perdure.reports import (
    Compaction,
    Evicted,
    Explanation,
    Pulled,
    Pushed,
    SnapshotSummary,
    Swept,
    TreeNode,
    Verification,
)

_Summaries = list[SnapshotSummary]  # StoreClient.list hides the builtin inside the class
_Nodes = list[TreeNode]


class StoreClient:
    """``ref`` is a snapshot's digest, a unique beginning of it, a tag, or a sandbox: its newest snapshot."""

    def __init__(self, http: Transport, progress: Progress | None) -> None:
        self._http = http
        self._progress = progress

    def list(self, *, sandbox: str | None = None) -> _Summaries:
        """All snapshots of the node, or those of one sandbox, newest first."""
        return msgspec.convert(self._http.call("GET", "/v1/snapshots", query={"sandbox": sandbox}), _Summaries)

    def inspect(self, ref: str) -> dict[str, Any]:
        """Its config, layers and maps, and who names it."""
        answer: dict[str, Any] = self._http.call("GET", _path(ref))
        return answer

    def tree(self) -> _Nodes:
        """All snapshots, in the order in which their tree is drawn."""
        return msgspec.convert(self._http.call("GET", "/v1/store/tree"), _Nodes)

    def verify(self, ref: str | None = None, *, thorough: bool = False) -> Verification:
        """One snapshot, or the whole store. thorough: each is also restored for real. Findings are no error."""
        path = "/v1/store/verify" if ref is None else f"{_path(ref)}/verify"
        return msgspec.convert(self._long(path, {"thorough": thorough}), Verification)

    def explain(self, ref: str) -> Explanation:
        """Where its bytes are."""
        return msgspec.convert(self._long(f"{_path(ref)}/explain"), Explanation)

    def compact(self, ref: str) -> Compaction:
        """Rewrite it in one layer per space; its sandbox then names the new one. Not while that sandbox runs."""
        return msgspec.convert(self._long(f"{_path(ref)}/compact"), Compaction)

    def push(self, ref: str, url: str, *, tag: str = "") -> Pushed:
        """Bring it, its template and its image to the store at ``url``, where ``tag`` names it then.

        The node goes there, with the credentials of its own environment. What is there already is skipped.
        """
        return msgspec.convert(self._long(f"{_path(ref)}/push", {"url": url, "tag": tag}), Pushed)

    def pull(self, url: str, reference: str, *, lazy: bool = False) -> Pulled:
        """The snapshot that a tag or digest names there. lazy: its memory stays there, and comes when it is wanted."""
        return msgspec.convert(self._long("/v1/store/pull", {"url": url, "reference": reference, "lazy": lazy}), Pulled)

    def export(self, ref: str) -> Iterator[bytes]:
        """A tar with it, its template and its image."""
        with self._http.open("GET", f"{_path(ref)}/export") as answer:
            yield from answer.chunks()

    def import_archive(self, tar: bytes | Iterable[bytes]) -> Pulled:
        """The snapshot of such a tar."""
        answer = self._http.send("POST", "/v1/store/import", body=tar, progress=self._progress)
        return msgspec.convert(answer, Pulled)

    def evict(self, ref: str, *, url: str = "") -> Evicted:
        """Delete its memory here, which the store at ``url`` (empty: where it was pushed to last) must hold."""
        return msgspec.convert(self._long(f"{_path(ref)}/evict", {"url": url}), Evicted)

    def remove(self, ref: str, *, force: bool = False, sandbox: str = "") -> int:
        """Give it up; the bytes freed. force: also the one that its sandbox is suspended to. sandbox: of several that
        have it (forks) this one gives it up; NotFound where that has it not."""
        query = {"force": int(force), **({"sandbox": sandbox} if sandbox else {})}
        return int(self._http.call("DELETE", _path(ref), query=query)["freed_bytes"])

    def collect(self, *, dry_run: bool = False) -> Swept:
        """Delete what no sandbox and no tag needs."""
        return msgspec.convert(self._long("/v1/store/collect", {"dry_run": dry_run}), Swept)

    def _long(self, path: str, body: Any = None) -> Any:
        return self._http.call("POST", path, json_body=body, progress=self._progress)


def _path(ref: str) -> str:
    return f"/v1/snapshots/{quote(ref, safe='')}"

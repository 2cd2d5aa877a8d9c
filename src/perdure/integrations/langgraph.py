"""LangGraph's checkpoints as entries of a session: ``PerdureSaver`` is a ``BaseCheckpointSaver``.

A thread is a session. A checkpoint is two entries that are appended as one: ``checkpoint`` under its id, and before it
a ``channel`` per channel that has a new version; a third one, ``latest``, is found by the namespace alone. Values of
channels are kept once per version, lists item by item, so that a conversation that grows costs what is new of it
(``checkpoints``).

The last checkpoint of a namespace is the one with the highest id, as LangGraph's own savers have it. Nearly always that
is the one that came last; where an earlier one comes later (a thread that is copied from elsewhere, the last first),
its ``latest`` names the highest as ``top``, and the session's ``value`` has ``unsorted``.

Facts of the interface: ``langgraph.checkpoint.base`` 4.3.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from perdure.client.server import ServerClient
from perdure.client.sessions import UNSET
from perdure.errors import Conflict, InvalidValue, LogConflict, NotFound
from perdure.integrations.checkpoints import Values
from perdure.integrations.keys import joined
from perdure.integrations.pruning import Place, keep
from perdure.model import Entry

TAGS = {"framework": "langgraph"}
AT_ONCE = 50  # checkpoints of a list whose values are fetched together
TRIES = 20
KNOWN_MAX = 1000  # threads whose last checkpoint a saver remembers

_Tuples = list[CheckpointTuple]  # these are named here because a method of the class is called list
_Places = list[Place]
_Entries = list[dict[str, Any]]
_Payloads = list[Any]


class PerdureSaver(BaseCheckpointSaver[str]):
    """Keeps the checkpoints of a graph in the context log of a Perdure server.

    client: of the server (None: of this home's). The async methods work in threads. ``Unavailable``: the server is
    away; ``InvalidValue``: a value that LangGraph's serializer does not take, with its channel.
    """

    def __init__(self, client: ServerClient | None = None, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(serde=serde)
        self._sessions = (client or ServerClient()).sessions
        self._values = Values(self.serde)
        self._tops: dict[Place, str] = {}  # the highest id of a session's namespace, as far as this saver knows

    # -- reading

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that ``config`` names, or the last one of its thread and namespace."""
        thread, namespace = _place(config)
        name, checkpoint_id = _name(thread), get_checkpoint_id(config)
        wanted = checkpoint_id or self._top(name, namespace)
        if not wanted:
            return None
        try:
            found = self._tuples(thread, name, [(namespace, wanted)])
            if not found and checkpoint_id is None:  # the highest was deleted by its run
                there = [entry.payload["id"] for entry in self._checkpoints(name, namespace)]
                found = self._tuples(thread, name, [(namespace, max(there))]) if there else []
        except NotFound:
            return None
        return found[0] if found else None

    def _top(self, name: str, namespace: str) -> str:
        try:
            latest = next(self._sessions.newest(name, key=joined("latest", namespace), limit=1), None)
        except NotFound:
            return ""
        return "" if latest is None else str(latest.payload.get("top") or latest.payload["id"])

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """The last first; of all threads where there is no ``config``."""
        left = limit
        for value in self._threads() if config is None else self._thread(config):
            for found in self._list(value, config, filter or {}, before, AT_ONCE if filter or not left else left):
                if left is not None and left <= 0:
                    return
                left = None if left is None else left - 1
                yield found

    def _threads(self) -> Iterator[dict[str, Any]]:
        for session in self._sessions.all(TAGS):
            yield session.value

    def _thread(self, config: RunnableConfig) -> Iterator[dict[str, Any]]:
        try:
            yield self._sessions.get(_name(_thread(config))).value
        except NotFound:
            return

    def _list(
        self,
        value: dict[str, Any],
        config: RunnableConfig | None,
        filter: dict[str, Any],
        before: RunnableConfig | None,
        at_once: int,
    ) -> Iterator[CheckpointTuple]:
        wanted = config["configurable"].get("checkpoint_ns") if config else None
        only = get_checkpoint_id(config) if config else None
        below = get_checkpoint_id(before) if before else None
        thread, found, seen = value["thread"], list[Place](), set[Place]()
        places = ((entry.payload["ns"], entry.payload["id"]) for entry in self._checkpoints(_name(thread), wanted))
        for at in sorted(places, key=lambda at: at[1], reverse=True) if value.get("unsorted") else places:
            if at in seen or (only and at[1] != only) or (below and at[1] >= below):
                continue
            seen.add(at)
            found.append(at)
            if len(found) == min(at_once, AT_ONCE):
                yield from self._matching(thread, found, filter)
                found = []
        yield from self._matching(thread, found, filter)

    def _checkpoints(self, name: str, namespace: str | None) -> Iterator[Entry]:
        """The entries ``latest``, the last first."""
        key = "" if namespace is None else joined("latest", namespace)
        try:
            yield from self._sessions.newest(name, kind="latest", key=key)
        except NotFound:
            return

    def _matching(self, thread: str, places: _Places, filter: dict[str, Any]) -> Iterator[CheckpointTuple]:
        for found in self._tuples(thread, _name(thread), places):
            metadata: dict[str, Any] = dict(found.metadata)
            if all(name in metadata and metadata[name] == value for name, value in filter.items()):
                yield found

    def _tuples(self, thread: str, name: str, places: _Places) -> _Tuples:
        """Those of them that there are, in this order: what they are is fetched in one question, their values in one
        more."""
        keys = [joined(kind, *place) for place in places for kind in ("checkpoint", "writes")]
        entries = self._sessions.find(name, keys) if keys else []
        checkpoints = {entry.key: entry.payload for entry in entries if entry.kind == "checkpoint"}
        writes: dict[str | None, _Payloads] = {}
        for entry in entries:
            if entry.kind == "writes":
                writes.setdefault(entry.key, []).append(entry.payload)
        there = [(place, checkpoints[key]) for place in places if (key := joined("checkpoint", *place)) in checkpoints]
        read = [(place, payload, self._values.loads(payload["checkpoint"])) for place, payload in there]
        channels = {
            joined("channel", place[0], channel, version)
            for place, _, checkpoint in read
            for channel, version in checkpoint["channel_versions"].items()
        }
        values = {entry.key: entry.payload for entry in self._sessions.find(name, sorted(channels))} if channels else {}
        return [
            CheckpointTuple(
                config=_config(thread, *place),
                checkpoint=self._values.whole(place[0], checkpoint, values),
                metadata=self._values.loads(payload["metadata"]),
                parent_config=_config(thread, place[0], payload["parent"]) if payload["parent"] else None,
                pending_writes=self._values.written(writes.get(joined("writes", *place), [])),
            )
            for place, payload, checkpoint in read
        ]

    # -- writing

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Append a checkpoint and the values of its new versions, as one."""
        thread, namespace = _place(config)
        rest: dict[str, Any] = dict(checkpoint)
        values: dict[str, Any] = rest.pop("channel_values")
        entries = [
            {
                "kind": "channel",
                "key": joined("channel", namespace, channel, version),
                "payload": self._values.of_channel(values, channel),
            }
            for channel, version in new_versions.items()
        ]
        told = get_checkpoint_metadata(config, metadata)
        payload = {
            "ns": namespace,
            "id": checkpoint["id"],
            "parent": get_checkpoint_id(config),
            "run": None if told.get("run_id") is None else str(told["run_id"]),
            "checkpoint": self._values.dumps(rest, "the checkpoint"),
            "metadata": self._values.dumps(told, "the metadata"),
        }
        entries.append(
            {"kind": "checkpoint", "key": joined("checkpoint", namespace, checkpoint["id"]), "payload": payload}
        )
        latest = {field: payload[field] for field in ("ns", "id", "run")}
        place = _name(thread), namespace
        top = self._tops.get(place) or self._top(*place)
        is_late = top > checkpoint["id"]
        if is_late:
            latest["top"] = top
        entries.append({"kind": "latest", "key": joined("latest", namespace), "payload": latest})
        self._append(thread, entries, {"thread": thread, "unsorted": True} if is_late else None)
        if len(self._tops) == KNOWN_MAX:
            self._tops.clear()
        self._tops[place] = max(top, checkpoint["id"])
        return _config(thread, namespace, checkpoint["id"])

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Append what a task wrote above a checkpoint."""
        thread, namespace = _place(config)
        payload = self._values.of_writes(writes, task_id, task_path)
        key = joined("writes", namespace, config["configurable"]["checkpoint_id"])
        self._append(thread, [{"kind": "writes", "key": key, "payload": payload}])

    def _append(self, thread: str, entries: _Entries, value: dict[str, Any] | None = None) -> None:
        name = _name(thread)
        for _ in range(TRIES):
            try:
                self._sessions.append(name, entries, value=value or UNSET)
                return
            except NotFound:  # there is none yet, or none any more
                self._sessions.make(name, tags=TAGS, value={"thread": thread})
        raise LogConflict(f"thread {thread!r} is deleted all the time", hint="Another program uses its id.")

    # -- threads

    def delete_thread(self, thread_id: str) -> None:
        """Delete all of a thread."""
        self._tops.clear()
        try:
            self._sessions.delete(_name(thread_id))
        except NotFound:
            pass

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints that these runs made, in whatever thread: all threads are looked through."""
        runs = set(run_ids)
        for thread in [value["thread"] for value in self._threads()] if runs else []:
            gone = {
                (e.payload["ns"], e.payload["id"])
                for e in self._checkpoints(_name(thread), None)
                if e.payload["run"] in runs
            }
            if gone:
                self._keep(thread, gone, is_kept=False)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Fork a thread: nothing is copied. ``Conflict``: there is one of this id already."""
        source, target = _name(source_thread_id), _name(target_thread_id)
        try:
            value = {**self._sessions.get(source).value, "thread": str(target_thread_id)}
            self._sessions.fork(source, target, value=value)
        except NotFound:
            return
        except Conflict as error:
            raise Conflict(f"there is a thread {target_thread_id!r} already", hint="Delete it first.") from error

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Keep only the last checkpoint of each namespace ("keep_latest"), or nothing ("delete").

        A checkpoint whose channels are rebuilt from what was written above earlier ones (``DeltaChannel``, beta) keeps
        those, too: back to where the values of all its channels are.
        """
        if strategy not in ("keep_latest", "delete"):
            raise InvalidValue(f"no such strategy: {strategy!r}", hint="There are keep_latest and delete.")
        for thread in thread_ids:
            if strategy == "delete":
                self.delete_thread(thread)
            else:
                kept = set(self._needed(thread))
                if kept:
                    self._keep(thread, kept, is_kept=True)

    def _needed(self, thread: str) -> Iterator[tuple[str, str]]:
        """The last checkpoint of each namespace, and those above it that its channels are rebuilt from."""
        latest: dict[str, str] = {}
        for entry in self._checkpoints(_name(thread), None):
            namespace, checkpoint_id = entry.payload["ns"], entry.payload["id"]
            latest[namespace] = max(latest.get(namespace, ""), checkpoint_id)
        for namespace, checkpoint_id in latest.items():
            at: RunnableConfig | None = _config(thread, namespace, checkpoint_id)
            missing: set[str] | None = None
            while at is not None and (found := self.get_tuple(at)) is not None:
                yield namespace, found.checkpoint["id"]
                there = set(found.checkpoint["channel_values"])
                is_delta = "counters_since_delta_snapshot" in found.metadata
                if missing is None:
                    missing = set(found.checkpoint["channel_versions"]) - there if is_delta else set()
                missing -= there
                if not missing:
                    break
                at = found.parent_config

    def _keep(self, thread: str, places: set[Place], *, is_kept: bool) -> None:
        self._tops.clear()
        keep(
            self._sessions,
            _name(thread),
            lambda place: (place in places) is is_kept,
            lambda payload: self._values.loads(payload["checkpoint"]),
        )

    # -- the same, from an event loop

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """As ``get_tuple``."""
        return await asyncio.to_thread(self.get_tuple, config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """As ``list``."""
        found = self.list(config, filter=filter, before=before, limit=limit)
        while (one := await asyncio.to_thread(next, found, None)) is not None:
            yield one

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """As ``put``."""
        return await asyncio.to_thread(self.put, config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """As ``put_writes``."""
        await asyncio.to_thread(self.put_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """As ``delete_thread``."""
        await asyncio.to_thread(self.delete_thread, thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """As ``delete_for_runs``."""
        await asyncio.to_thread(self.delete_for_runs, run_ids)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """As ``copy_thread``."""
        await asyncio.to_thread(self.copy_thread, source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """As ``prune``."""
        await asyncio.to_thread(lambda: self.prune(thread_ids, strategy=strategy))

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Versions that sort as they come, and differ where two write at once."""
        number = 0 if current is None else int(str(current).partition(".")[0])
        return f"{number + 1:032}.{secrets.token_hex(8)}"


def _thread(config: RunnableConfig) -> str:
    return str(config["configurable"]["thread_id"])


def _place(config: RunnableConfig) -> tuple[str, str]:
    return _thread(config), config["configurable"].get("checkpoint_ns", "")


def _config(thread: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}}


def _name(thread: str) -> str:
    return joined("langgraph", str(thread))  # a program may have numbers, or UUIDs

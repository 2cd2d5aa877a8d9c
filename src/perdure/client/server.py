"""The typed client of the server (``perdured``): what ``perdure`` and programs use.

Synchronous and light. Every method raises the errors of ``perdure.errors``, as the server raised them. ``run`` in a
parameter is a run's id, a unique prefix of it, or its name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from perdure.client import source as source_of
from perdure.client.queues import QueuesClient
from perdure.client.schedules import SchedulesClient
from perdure.client.sessions import SessionsClient
from perdure.client.transport import Progress, Transport
from perdure.errors import Conflict, PerdureError, Unavailable, from_json, in_words
from perdure.formats import scriptblock
from perdure.host.paths import Home
from perdure.model import Entry, JointSpent, OutputPiece, RunInfo, RunState, Signalled, SnapshotInfo, settle

if TYPE_CHECKING:
    from perdure.client.tls import Tls

ENDED = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED})
WAIT_S = 30.0  # of one long poll

_Runs = list[RunInfo]  # named here because a method of the class is called runs


class ServerClient:
    """The server of one home; or, with ``url`` and ``token``, any server that can be reached over TCP: on another
    machine with TLS (https), and a certificate that has ``fingerprint`` (SHA-256, hex), or that this machine trusts."""

    def __init__(self, home: Home | None = None, *, url: str = "", token: str = "", fingerprint: str = "") -> None:
        settle(RunInfo, Entry, OutputPiece)
        self._home = home or Home.find()
        address = url or f"unix:{self._home.socket('perdured')}"
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._transport = Transport(
            address,
            service="the server (perdured)",
            hint="start it with: perdure up",
            headers=headers,
            tls=_trust(url, fingerprint) if url else None,
        )
        self.queues = QueuesClient(self._transport)
        self.schedules = SchedulesClient(self._transport)
        self.sessions = SessionsClient(self._transport)

    def start(
        self,
        *,
        source: str = "",
        file: str = "",
        function: str = "",
        command: Sequence[str] = (),
        input: Any = None,
        image: str = "",
        key: str | None = None,
        name: str = "",
        memory_mib: int = 0,
        vcpus: int = 0,
        env: Mapping[str, str] | None = None,
        disk_mib: int = 0,
        policy: Mapping[str, Any] | None = None,
        fittings: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        active_timeout_s: float | None = None,
        durability: str = "",
        version: str = "",
        retry: Mapping[str, Any] | None = None,
        key_scope: str | None = None,
        key_ttl_s: float | None = None,
        tags: Mapping[str, str] | None = None,
        metadata: Any = None,
        queue: str | None = None,
        queue_key: str | None = None,
        priority: int = 0,
        hooks: Sequence[Mapping[str, Any]] = (),
        on_divergence: str = "",
        budget: Mapping[str, float] | None = None,
        modules: Mapping[str, str] | None = None,
        pack: str | None = None,
        progress: Progress | None = None,
    ) -> RunInfo:
        """Start a run: of an agent (``function`` in the text ``source`` of ``file``), or of a ``command``. What is said
        here counts, and where nothing is what ``@agent`` says. ``AgentInvalid``: it cannot be read.

        input: a JSON value. key: the same key starts a run only once, and gives the older run; in
        ``key_scope`` (None: the agent's name), until ``key_ttl_s`` has passed. 0: the default size.
        policy: when its machine sleeps and is captured (``idle_grace_s`` …); fittings: how else it is to find its
        machine (``cwd``, ``user``, ``networks`` …): fields of a ``StartRequest``, docs/any-language.md.
        timeout_s: of wall time, active_timeout_s: with a machine; then it fails (``timed-out``). retry: by
        kind of failure (agent-failed, program-failed, machine-failed, timed-out, or any) ``{"attempts", "delay_s",
        "factor", "max_delay_s", "jitter"}``. on_divergence: what becomes of a run whose program goes another way than
        its log, after a loss: fork (the default: on a new branch), fail or live (docs/time-travel.md).
        budget: what it may spend on models, ``{"tokens", "calls", "usd"}`` (docs/models.md). modules: files that the
        agent imports from beside its own, in base64 by path (``perdure.client.source.read`` finds them).
        progress: told how its packages are brought, where it requires some; pack: those of an earlier ``pack``.
        """
        request = {
            "source": source,
            "file": file,
            "function": function,
            "command": list(command),
            "input": input,
            "image": image,
            "key": key,
            "name": name,
            "memory_mib": memory_mib,
            "vcpus": vcpus,
            "env": dict(env or {}),
            "disk_mib": disk_mib,
            "on_divergence": on_divergence,
            "policy": dict(policy or {}),
            "fittings": dict(fittings or {}),
            "timeout_s": timeout_s,
            "active_timeout_s": active_timeout_s,
            "durability": durability,
            "version": version,
            "retry": dict(retry or {}),
            "key_scope": key_scope,
            "key_ttl_s": key_ttl_s,
            "tags": dict(tags or {}),
            "metadata": metadata,
            "queue": queue,
            "queue_key": queue_key,
            "priority": priority,
            "hooks": [dict(hook) for hook in hooks],
            "budget": dict(budget or {}),
            "modules": dict(modules or {}),
            "pack": pack,
        }
        request = self.with_packages(source_of.completed(request), progress)
        return self._info("POST", "/v1/runs", request_of(**request))

    def with_packages(self, request: Mapping[str, Any], progress: Progress | None = None) -> dict[str, Any]:
        """The fields of a ``StartRequest``, and where its agent requires packages the ``pack`` that has them."""
        needs = scriptblock.read(request.get("source") or "", request.get("file") or "")
        if request.get("pack") or not needs.packages:
            return dict(request)
        return {**request, "pack": self.pack(request, progress)}

    def pack(self, request: Mapping[str, Any], progress: Progress | None = None) -> str | None:
        """Bring what an agent requires, and keep it with the modules beside it; its digest, for ``start``. ``request``:
        the fields of a ``StartRequest``. None: it has neither. ``AgentInvalid`` …: something is not to be had."""
        body = request_of(**source_of.completed(request))
        watched = progress or (lambda what, done, total: None)  # it may take minutes: the server tells that it lives
        found: dict[str, Any] = self._transport.call("POST", "/v1/packs", json_body=body, progress=watched)
        pack: str | None = found["pack"]
        return pack

    def runs(self, *, states: Sequence[str] = (), tags: Mapping[str, str] | None = None) -> _Runs:
        """All runs, newest first; with ``states`` only those that are in one of them, with ``tags`` those that have
        them all."""
        wanted = [f"{name}={value}" for name, value in (tags or {}).items()]
        answer = self._transport.call("GET", "/v1/runs", query={"state": ",".join(states), "tag": wanted})
        return msgspec.convert(answer["runs"], list[RunInfo])

    def get(self, run: str, *, wait_s: float | None = None) -> RunInfo:
        """One run; with ``wait_s`` when it has ended, or after so many seconds. ``NotFound``."""
        answer = self._transport.call("GET", _path(run), query={"wait_s": wait_s})
        return msgspec.convert(answer, RunInfo)

    def result(self, run: str, *, timeout_s: float | None = None) -> Any:
        """What the run returned, once it has ended. Raises its error when it failed, ``Unavailable`` later."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = WAIT_S if deadline is None else max(0.0, min(WAIT_S, deadline - time.monotonic()))
            info = self.get(run, wait_s=left_s)
            if info.state in ENDED:
                return outcome(info)
            if deadline is not None and time.monotonic() >= deadline:
                raise Unavailable(f"run {info.id} has not ended: it is {info.state}", hint="wait longer")

    def entries(
        self,
        run: str,
        *,
        after: int = 0,
        limit: int | None = None,
        follow: bool = False,
        compact: bool = False,
        branch: int | None = None,
        kind: str | None = None,
        key: str | None = None,
    ) -> Iterator[Entry]:
        """The run's context log from ``after`` (a seq) on. With ``follow`` up to the entry that ends the run, and on
        through a restart of the server. ``compact`` leaves large values as references. ``branch``: of an older one.
        kind: one, or how it begins (``model.``). key: of one call, or a lane (``main/``)."""
        while True:
            query: dict[str, Any] = {
                "after": after,
                "limit": limit,
                "follow": int(follow) or None,
                "compact": int(compact) or None,
            }
            query |= {"branch": branch, "kind": kind, "key": key}
            try:
                with self._transport.open("GET", _path(run, "entries"), query=query) as answer:
                    for value in answer.lines():
                        if "error" in value and "kind" not in value:
                            raise from_json(value["error"])
                        entry = msgspec.convert(value, Entry)
                        after = entry.seq
                        yield entry
                return
            except Unavailable:
                if not follow:
                    raise
                self._wait_until_up()

    def _wait_until_up(self, timeout_s: float = 60.0) -> None:
        """Wait for a server that went away in the middle of an answer; after a minute it is gone."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if error := self.status().get("error"):  # it is up, and its database is not
                    raise from_json(error)
                return
            except Unavailable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.2)

    def signal(self, run: str, name: str, value: Any = None, *, id: str | None = None) -> Signalled:
        """Send a signal; it is kept until the run waits for it. ``Conflict`` when the run has ended.

        id: the run takes a signal with the same id only once, so it may be sent again when nobody knows if it came.
        The run, and in ``outcome`` what became of the signal.
        """
        body = {"name": name, "value": value, "id": id}
        return msgspec.convert(self._transport.call("POST", _path(run, "signal"), json_body=body), Signalled)

    def approve(
        self,
        run: str,
        *,
        wait_id: str | None = None,
        approved: bool = True,
        comment: str = "",
        by: str = "",
        values: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Answer an approval; returns the wait. ``Conflict`` when nothing waits, it expired, or somebody was first.

        values: by name of a field of its form. ``InvalidValue`` names the field that does not fit.
        """
        body = {"wait_id": wait_id, "approved": approved, "comment": comment, "by": by, "values": dict(values or {})}
        answer = self._transport.call("POST", _path(run, "approve"), json_body=body)
        wait: dict[str, Any] = answer["wait"]
        return wait

    def checkpoint(self, run: str, *, keep: bool = False) -> SnapshotInfo:
        """A snapshot of the run now, once it is durable; the run goes on. keep: it is not given up for newer ones.
        ``Conflict`` when the run has ended, or a step or an answer puts the checkpoint off for too long."""
        answer = self._transport.call("POST", _path(run, "checkpoint"), json_body={"keep": keep})
        return msgspec.convert(answer, SnapshotInfo)

    def tag(self, run: str, tags: Mapping[str, str | None], **metadata: Any) -> RunInfo:
        """Set some tags (None: take one away), and ``metadata=`` a JSON value; in any state, also after the end."""
        return self._info("POST", _path(run, "tags"), {"tags": dict(tags), **metadata})

    def set_budget(self, run: str, **limits: float) -> RunInfo:
        """Change what a run may spend on models, from its next call on: ``tokens``, ``calls``, ``usd``; 0: no limit."""
        return self._info("POST", _path(run, "budget"), limits)

    def joint_budgets(self) -> list[JointSpent]:
        """What all runs of some agents may spend on models together, and have spent in this period."""
        return msgspec.convert(self._transport.call("GET", "/v1/budgets")["budgets"], list[JointSpent])

    def cancel(self, run: str, *, reason: str = "", clean_up_s: float | None = None, force: bool = False) -> RunInfo:
        """End the run, its children and their machines. Its program is told, and has ``clean_up_s`` (None: 30) to clean
        up; with ``force`` none. ``Conflict`` when it has ended."""
        body = {"reason": reason, "clean_up_s": clean_up_s, "force": force}
        return self._info("POST", _path(run, "cancel"), body)

    # -- back in time

    def fork(self, run: str, *, at: int | None = None, count: int = 1, name: str = "", key: str | None = None) -> _Runs:
        """New runs that go on from an entry of this one (None: the newest), each by itself; with a ``key`` that it was
        forked with before the runs of then. ``InvalidValue``: there is no such entry, or it ended the run."""
        body = {"at": at, "count": count, "name": name, "key": key}
        answer = self._transport.call("POST", _path(run, "fork"), json_body=body)
        return msgspec.convert(answer["runs"], list[RunInfo])

    def rewind(self, run: str, to: int, *, key: str | None = None) -> RunInfo:
        """Take the run itself back to an entry, also after its end: it goes on from there on a new branch. With the
        same ``key`` that is done once."""
        return self._info("POST", _path(run, "rewind"), {"to": to, "key": key})

    def tree(self, run: str) -> dict[str, Any]:
        """The run with its branches and forks, and theirs (docs/time-travel.md)."""
        answer: dict[str, Any] = self._transport.call("GET", _path(run, "tree"))
        return answer

    def trees(self) -> list[dict[str, Any]]:
        """The same of every run that is no fork."""
        answer: list[dict[str, Any]] = self._transport.call("GET", "/v1/tree")["trees"]
        return answer

    def diff(self, a: str, b: str, *, files: bool = False) -> dict[str, Any]:
        """Where the logs of two runs (RUN, or RUN:BRANCH) part; ``files``: and what differs in their files."""
        query = {"a": a, "b": b, "files": int(files) or None}
        answer: dict[str, Any] = self._transport.call("GET", "/v1/diff", query=query)
        return answer

    def file(self, run: str, path: str) -> bytes:
        """A file of the run's sandbox that it has changed since its image, 1 MiB at most."""
        with self._transport.open("GET", _path(run, "file"), query={"path": path}) as answer:
            return answer.read()

    def output(self, run: str) -> bytes:
        """What the program has printed so far; of a run that has ended the last of it."""
        with self._transport.open("GET", _path(run, "output")) as answer:
            return answer.read()

    def printed(
        self, run: str, *, life: str = "", offset: int = 0, tail: int | None = None, follow: bool = False
    ) -> Iterator[OutputPiece]:
        """What the program wrote, from byte ``offset`` of that life on (all of it where the run has another one now),
        or its last ``tail`` lines. With ``follow`` until the run has ended, through restarts of the server. A piece's
        ``life`` and ``end`` are where to go on after it. Where one does not begin where the one before ended, what was
        between is not kept; ``at`` goes back where a restored machine writes again."""
        while True:
            query = {"life": life, "offset": offset, "tail": tail, "follow": int(follow) or None}
            try:
                with self._transport.open("GET", _path(run, "output"), query=query) as answer:
                    for value in answer.lines():
                        if "error" in value:
                            raise from_json(value["error"])
                        piece = msgspec.convert(value, OutputPiece)
                        life, offset, tail = piece.life, piece.end, None
                        yield piece
                return
            except Unavailable:
                if not follow:
                    raise
                self._wait_until_up()

    def verify(self, run: str) -> dict[str, Any]:
        """Recompute the log's hash chain: how many entries, branches and blobs hold. ``ProtocolError`` otherwise."""
        answer: dict[str, Any] = self._transport.call("POST", _path(run, "verify"))
        return answer

    def export(self, run: str) -> Iterator[bytes]:
        """The run's log as the lines of a file (docs/formats/log-file.md)."""
        with self._transport.open("GET", _path(run, "export")) as answer:
            kept = bytearray()
            for chunk in answer.chunks():
                kept += chunk
                if (end := kept.rfind(b"\n")) >= 0:
                    for line in bytes(kept[:end]).split(b"\n"):
                        if line.startswith(b'{"error":'):
                            raise from_json(json.loads(line)["error"])
                        yield line + b"\n"
                    del kept[: end + 1]

    def take_up(self, lines: Iterable[bytes]) -> RunInfo:
        """A run that has ended, from its exported log; or the entries of one that was pruned, if they are the very
        same. ``ProtocolError`` names the line that does not verify; ``Conflict``: there is such a run, or it was pruned
        of another log, or what a fork shares is not there."""
        return msgspec.convert(self._transport.send("POST", "/v1/import", body=lines), RunInfo)

    def prune(self, run: str) -> None:
        """Drop the log of a run that has ended. ``Conflict``."""
        self._transport.call("POST", _path(run, "prune"))

    def prune_older(self, older_than_s: float, *, dry_run: bool = False) -> dict[str, Any]:
        """Drop the logs of all runs that ended so long ago: their ids (``runs``), and the blobs that were removed."""
        body = {"older_than_s": older_than_s, "dry_run": dry_run}
        answer: dict[str, Any] = self._transport.call("POST", "/v1/prune", json_body=body)
        return answer

    def blob(self, digest: str) -> bytes:
        """A large value of a log, by its digest."""
        with self._transport.open("GET", f"/v1/blobs/{quote(digest)}") as answer:
            return answer.read()

    def status(self) -> dict[str, Any]:
        """The server: pid, url, version, home, started, runs by state, node; error, in place of the runs, while its
        database does not answer."""
        answer: dict[str, Any] = self._transport.call("GET", "/v1/status", timeout_s=10.0)
        return answer

    def servers(self) -> list[dict[str, Any]]:
        """All servers on the database of this one: server (its id), lease (its number), url, fingerprint,
        pid, host, home, node, version, runs, heartbeat_age_s. On SQLite there is no lease, and no id."""
        found: list[dict[str, Any]] = self._transport.call("GET", "/v1/servers", timeout_s=10.0)["servers"]
        return found

    def provider_requests(self) -> list[dict[str, Any]]:
        """What the offline provider of this home itself counted: ``{"id", "time", "stream", "status", "bytes"}`` each.
        [] when none runs."""
        try:
            port = json.loads((self._home.run / "offline.json").read_bytes())["port"]
        except FileNotFoundError:
            return []
        provider = Transport(f"http://127.0.0.1:{port}", service="the offline provider", hint="see run/offline.log")
        found: list[dict[str, Any]] = provider.call("GET", "/requests", timeout_s=10.0)["requests"]
        return found

    def _info(self, method: str, path: str, body: dict[str, Any]) -> RunInfo:
        return msgspec.convert(self._transport.call(method, path, json_body=body), RunInfo)


def request_of(**given: Any) -> dict[str, Any]:
    """The fields of a ``StartRequest`` that say something. Of some, 0 and "" say something, too."""
    return {field: value for field, value in given.items() if value or field == "input" or _is_said(field, value)}


def _is_said(field: str, value: Any) -> bool:
    return value is not None and field in (
        "key", "key_scope", "key_ttl_s", "timeout_s", "active_timeout_s", "queue", "queue_key", "metadata"
    )  # fmt: skip


def outcome(info: RunInfo) -> Any:
    """The result of a run that has ended; raises the error that ended it."""
    if info.state is RunState.COMPLETED:
        return info.result
    if info.state is RunState.CANCELLED:
        raise Conflict(f"run {info.id} was cancelled")
    raise failure(info)


def failure(info: RunInfo) -> PerdureError:
    """The error of a failed run."""
    told = info.error or {"message": "unknown"}
    error = from_json({**told, "message": f"run {info.id} failed: {in_words(told)}"})
    error.details = {**error.details, **{key: told[key] for key in ("type", "traceback") if key in told}}
    return error


def _path(run: str, part: str = "") -> str:
    return f"/v1/runs/{quote(run, safe='')}" + (f"/{part}" if part else "")


def _trust(url: str, fingerprint: str) -> Tls | None:
    """InvalidValue: it is in clear, to another machine."""
    from perdure.client import clear
    from perdure.client.tls import Tls

    clear.check(url)
    hint = "Give the fingerprint that is in run/server.json of that server's state folder."
    return Tls(fingerprint=fingerprint.lower(), hint=hint) if url.startswith("https:") else None

"""The typed client of a node (``fcrund``): what ``fcrun``, the server and tests use.

Synchronous and light. Every method raises the errors of ``perdure.errors``, as the node raised them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from perdure.client.border import BorderClient
from perdure.client.library import LibraryClient
from perdure.client.networks import NetworksClient
from perdure.client.registries import RegistryClient
from perdure.client.session import Session
from perdure.client.snapshots import StoreClient
from perdure.client.transport import Progress, Transport
from perdure.client.views import ViewsClient
from perdure.client.volumes import VolumesClient
from perdure.errors import NoRights, PerdureError, Unavailable
from perdure.formats.logs import STDERR as STDERR
from perdure.formats.logs import STDOUT as STDOUT
from perdure.formats.logs import Decoder, LogRecord
from perdure.host.paths import Home
from perdure.model import (
    CallsEndpoint,
    DiskUse,
    ExecSpec,
    Fork,
    ImageInfo,
    LogPosition,
    NodeEvent,
    Recipe,
    SandboxInfo,
    SandboxSpec,
    SnapshotInfo,
    TemplateInfo,
)

AWAY_S = 30.0  # a node on another machine may be away, as when it is restarted
AWAY_AGAIN_S = 0.2
SHUTDOWN_S = 60.0  # a daemon that ends waits some time for what is under way

# named here because NodeClient.list hides the builtin inside the class
_Sandboxes = list[SandboxInfo]
_Snapshots = list[SnapshotInfo]
_Images = list[ImageInfo]
_DiskUses = list[DiskUse]
_Templates = list[TemplateInfo]


class NodeClient(ViewsClient):
    """All that a node can be asked. ``ref`` is a sandbox's id, a unique prefix of it, or its name."""

    def __init__(self, home: Home, progress: Progress | None = None, http: Transport | None = None) -> None:
        """progress: told about long steps (a first start of the emulated host, an image being packed). http: to
        another node than that of ``home``."""
        self.home = home
        self.is_elsewhere = http is not None
        self._progress = progress
        self._http = http or Transport(
            f"unix:{home.socket('fcrund')}",
            service="the node daemon (fcrund)",
            hint=f"its log is {home.run / 'fcrund.log'}; any fcrun command starts it again",
        )

        self.store = StoreClient(self._http, progress)
        self.registries = RegistryClient(self._http, progress)
        self.library = LibraryClient(self._http, progress)
        self.volumes = VolumesClient(self._http)
        self.networks = NetworksClient(self._http)
        self.border = BorderClient(self._http)

    @classmethod
    def named(cls, environ: Mapping[str, str], home: Home, progress: Progress | None = None) -> NodeClient:
        """The node that FCRUN_HOST names, else that of ``home``. Raises InvalidValue."""
        if not environ.get("FCRUN_HOST"):
            return cls(home, progress)
        from perdure.client import place

        return cls(home, progress, place.transport(environ))

    def ensure(self) -> None:
        """It answers. The node of this home is started if need be; another one is waited for, and never started.

        Raises Unavailable, NoRights.
        """
        if not self.is_elsewhere:
            ensure_running(self.home)
            return
        deadline = time.monotonic() + AWAY_S
        while True:
            try:
                self.system(timeout_s=AWAY_S)
                return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(AWAY_AGAIN_S)

    # -- the node ---------------------------------------------------------------------------------------------------
    def system(self, timeout_s: float | None = None, *, brief: bool = False) -> dict[str, Any]:
        """{version, pid, home, id, sandboxes: {state: count}, images, host: {…}}; brief: the first four."""
        query = {"brief": 1} if brief else None
        answer: dict[str, Any] = self._http.call("GET", "/v1/system", query=query, timeout_s=timeout_s)
        return answer

    def shutdown(self) -> None:
        """End the daemon, and wait for its end. Running sandboxes go on; the next daemon adopts them.

        Raises Unavailable when none answers, or when it does not end within SHUTDOWN_S.
        """
        import os

        from perdure.linux.readiness import readable

        pid = int(self.system()["pid"])
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            self._http.call("POST", "/v1/system/shutdown")
            if not readable(handle, SHUTDOWN_S):
                raise Unavailable(f"the node daemon (fcrund, pid {pid}) does not end", hint=f"kill -9 {pid}")
        finally:
            os.close(handle)

    def disk_use(self) -> _DiskUses:
        """What the node's disk is taken by, a kind of thing each."""
        return msgspec.convert(self._http.call("GET", "/v1/system/df"), _DiskUses)

    def events(
        self, *, follow: bool = True, since: float | None = None, until: float | None = None
    ) -> Iterator[NodeEvent]:
        """Events, oldest first; with ``follow`` also those to come. since, until: seconds since the epoch."""
        query = {"follow": int(follow), "since": since, "until": until}
        with self._http.open("GET", "/v1/events", query=query) as answer:
            for line in answer.lines():
                yield msgspec.convert(line, NodeEvent)

    # -- sandboxes --------------------------------------------------------------------------------------------------
    def create(self, spec: SandboxSpec) -> SandboxInfo:
        """Record a sandbox; nothing runs yet. Files put into it now are there when its main process starts."""
        return self._sandbox("POST", "/v1/sandboxes", msgspec.to_builtins(spec))

    def start(self, ref: str) -> SandboxInfo:
        """Start a created sandbox, or an exited one again (its files are kept); returns when its process runs."""
        return self._sandbox("POST", f"{_path(ref)}/start")

    def get(self, ref: str) -> SandboxInfo:
        return self._sandbox("GET", _path(ref))

    def rename(self, ref: str, name: str) -> SandboxInfo:
        return self._sandbox("POST", f"{_path(ref)}/rename", {"name": name})

    def list(self, *, everything: bool = True, label: str = "") -> _Sandboxes:
        """Sandboxes, newest first; without ``everything`` not the created and exited ones; with ``label`` (NAME=VALUE)
        those that have it."""
        query: dict[str, int | str] = {"all": int(everything), **({"label": label} if label else {})}
        answer = self._http.call("GET", "/v1/sandboxes", query=query)
        return msgspec.convert(answer, _Sandboxes)

    def stop(self, ref: str, *, timeout_s: float | None = None, signal: str = "") -> SandboxInfo:
        """Its stop signal (SIGTERM where neither it nor its image has one), after timeout_s SIGKILL, if negative never;
        returns when it has exited. None: as it was created with, or 10."""
        return self._sandbox("POST", f"{_path(ref)}/stop", {"timeout_s": timeout_s, "signal": signal})

    def kill(self, ref: str, *, signal: str = "KILL") -> SandboxInfo:
        """Send the main process a signal. KILL ends the machine too and returns when it is gone."""
        return self._sandbox("POST", f"{_path(ref)}/kill", {"signal": signal})

    def suspend(self, ref: str, *, position: LogPosition | None = None) -> SnapshotInfo:
        """Capture memory and disk, store them, end the VM. On failure the sandbox goes on running."""
        body = {"position": msgspec.to_builtins(position)} if position else {}
        return msgspec.convert(self._long("POST", f"{_path(ref)}/suspend", body), SnapshotInfo)

    def checkpoint(self, ref: str, *, position: LogPosition | None = None) -> SnapshotInfo:
        """The same while the sandbox runs on; its vCPUs stand still for a moment."""
        body = {"position": msgspec.to_builtins(position)} if position else {}
        return msgspec.convert(self._long("POST", f"{_path(ref)}/checkpoint", body), SnapshotInfo)

    def fork(self, source: str, forks: Iterable[Fork] = (Fork(),), *, populate: bool | None = None) -> _Sandboxes:
        """New sandboxes that go on from where another one is; all of them run then, or none is there.

        source: a sandbox (one that runs is checkpointed, and runs on), or a snapshot's digest or the beginning of it.
        populate: as in ``resume``.
        """
        body = {"source": source, "forks": [msgspec.to_builtins(fork) for fork in forks], "populate": populate}
        return msgspec.convert(self._long("POST", "/v1/forks", body), _Sandboxes)

    def resume(
        self,
        ref: str,
        *,
        snapshot: str | None = None,
        calls: CallsEndpoint | None = None,
        populate: bool | None = None,
    ) -> SandboxInfo:
        """Go on from the newest snapshot; also when the VM died.

        snapshot: roll back to this one, whatever the sandbox does now. calls: a new endpoint for its calls. populate:
        bring all of its memory in the background (None: where some of it is beyond the node's machine).
        """
        body: dict[str, Any] = {"snapshot": snapshot} if snapshot else {}
        if populate is not None:
            body["populate"] = populate
        if calls is not None:
            body["calls"] = msgspec.to_builtins(calls)
        return self._sandbox("POST", f"{_path(ref)}/resume", body)

    def snapshots(self, ref: str) -> _Snapshots:
        """The snapshots of a sandbox, oldest first."""
        return msgspec.convert(self._http.call("GET", f"{_path(ref)}/snapshots"), _Snapshots)

    def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it with its files and snapshots. force: also while it runs. volumes: and those without a name."""
        self._http.call("DELETE", _path(ref), query={"force": int(force), "volumes": int(volumes)})

    def wait(self, ref: str) -> SandboxInfo:
        """The sandbox once it has exited (being suspended is not that); survives a restart of the node."""
        while True:
            try:
                return self._sandbox("GET", f"{_path(ref)}/wait")
            except Unavailable:
                self.ensure()

    # -- what runs in them ------------------------------------------------------------------------------------------
    def logs(
        self,
        ref: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> Iterator[LogRecord]:
        """What the main process wrote. follow: until it exits. tail: only the last lines. since, until: seconds since
        the epoch."""
        query = {"follow": int(follow), "tail": tail, "since": since, "until": until}
        decoder = Decoder()
        with self._http.open("GET", f"{_path(ref)}/logs", query=query) as answer:
            for piece in answer.chunks():
                yield from decoder.feed(piece)

    def exec(self, ref: str, spec: ExecSpec) -> Session:
        """Run a process beside the main one, with its streams here; a suspended sandbox is resumed first."""
        socket = self._http.websocket(f"{_path(ref)}/exec")
        socket.send_json({"exec": msgspec.to_builtins(spec)})
        return Session(socket)

    def exec_detached(self, ref: str, spec: ExecSpec) -> str:
        """Run a process in the background, its output dropped. Returns its id."""
        answer = self._http.call("POST", f"{_path(ref)}/exec", json_body=msgspec.to_builtins(spec))
        return str(answer["id"])

    def run(self, ref: str, spec: ExecSpec, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """Run a process to its end: (exit status, stdout, stderr)."""
        with self.exec(ref, spec) as session:
            if spec.stdin:
                session.send_stdin(stdin)
                session.close_stdin()
            streams: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
            for stream, data in session.outputs():
                streams[stream].append(data)
        if session.exit_status is None:
            raise Unavailable("the node closed the session before the process ended")
        return session.exit_status, b"".join(streams[STDOUT]), b"".join(streams[STDERR])

    def attach(self, ref: str, *, logs: bool = False, waits: bool = False, wakes: bool = False) -> Session:
        """The main process's streams. Of a created sandbox: waits for its start and misses nothing.

        logs: what it wrote before, first. waits: the same of one that has exited (else: Conflict). wakes: one that is
        suspended is resumed first, where its ``wake_on`` has exec.
        """
        query = {"logs": int(logs), "waits": int(waits), "wakes": int(wakes)}
        return Session(self._http.websocket(f"{_path(ref)}/attach", query=query))

    # -- files ------------------------------------------------------------------------------------------------------
    def put_archive(self, ref: str, path: str, tar: bytes | Iterable[bytes]) -> None:
        """Unpack a tar stream into the existing folder ``path`` of a created or running sandbox."""
        self._http.send(
            "PUT", f"{_path(ref)}/archive", query={"path": path}, body=tar, content_type="application/x-tar"
        )

    def get_archive(self, ref: str, path: str) -> Iterator[bytes]:
        """A tar stream of ``path`` of a running sandbox; its members begin with the last part of ``path``."""
        with self._http.open("GET", f"{_path(ref)}/archive", query={"path": path}) as answer:
            yield from answer.chunks()

    def stat(self, ref: str, path: str, *, follow: bool = True) -> dict[str, Any]:
        """{mode, size, mtime_s, link} of a running sandbox's file; mode is st_mode. Raises NotFound."""
        query = {"path": path, "follow": int(follow)}
        answer: dict[str, Any] = self._http.call("GET", f"{_path(ref)}/stat", query=query)
        return answer

    def put_files(self, ref: str, files: Mapping[str, bytes], *, mode: int = 0o644) -> None:
        """Write files by absolute path, owned by root; missing folders are made."""
        import io
        import tarfile

        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for path, data in files.items():
                member = tarfile.TarInfo(path.lstrip("/"))
                member.size, member.mode, member.mtime = len(data), mode, int(time.time())
                tar.addfile(member, io.BytesIO(data))
        self.put_archive(ref, "/", packed.getvalue())

    # -- templates of workloads -------------------------------------------------------------------------------------
    def templates(self) -> _Templates:
        """By name."""
        return msgspec.convert(self._http.call("GET", "/v1/templates"), _Templates)

    def build_template(self, recipe: Recipe) -> TemplateInfo:
        """Start a workload, wait until it is ready, keep it asleep; an older one of the name is replaced."""
        return msgspec.convert(self._long("POST", "/v1/templates", msgspec.to_builtins(recipe)), TemplateInfo)

    def run_template(self, name: str, fork: Fork | None = None) -> SandboxInfo:
        """A new sandbox that goes on from where the template's workload is."""
        return self._sandbox("POST", f"/v1/templates/{quote(name)}/run", msgspec.to_builtins(fork or Fork()))

    def remove_template(self, name: str) -> None:
        """What was made from it goes on."""
        self._http.call("DELETE", f"/v1/templates/{quote(name)}")

    # -- images -----------------------------------------------------------------------------------------------------
    def images(self) -> _Images:
        return msgspec.convert(self._http.call("GET", "/v1/images"), _Images)

    def import_image(self, name: str, tar: bytes | Iterable[bytes], *, changes: Iterable[str] = ()) -> ImageInfo:
        """An image from a root file system's tar. changes: as ``docker import --change``: "CMD python3", "ENV A=b"."""
        query = {"name": name, "change": [*changes]}
        answer = self._http.send("POST", "/v1/images/import", query=query, body=tar, progress=self._progress)
        return msgspec.convert(answer, ImageInfo)

    def load_images(self, archive: bytes | Iterable[bytes]) -> _Images:
        """The images of a ``docker save`` or OCI archive."""
        answer = self._http.send("POST", "/v1/images/load", body=archive, progress=self._progress)
        return msgspec.convert(answer, _Images)

    def build_image(self, name: str, packages: Iterable[str], *, suite: str | None = None) -> ImageInfo:
        """An image of a minimal Debian with these packages."""
        body = {"name": name, "packages": [*packages], "suite": suite}
        return msgspec.convert(self._long("POST", "/v1/images/build", body), ImageInfo)

    def tag_image(self, source: str, name: str) -> ImageInfo:
        """One more name for an image, which no other has from now on."""
        return msgspec.convert(
            self._http.call("POST", "/v1/images/tag", json_body={"source": source, "name": name}), ImageInfo
        )

    def remove_image(self, name: str) -> None:
        self._http.call("DELETE", "/v1/images", query={"name": name})

    # -- ------------------------------------------------------------------------------------------------------------
    def _long(self, method: str, path: str, body: Any = None) -> Any:
        return self._http.call(method, path, json_body=body, progress=self._progress)

    def _sandbox(self, method: str, path: str, body: Any = None) -> SandboxInfo:
        progress = self._progress if method == "POST" else None
        return msgspec.convert(self._http.call(method, path, json_body=body, progress=progress), SandboxInfo)


def _path(ref: str) -> str:
    return f"/v1/sandboxes/{quote(ref, safe='')}"


def ensure_running(home: Home) -> None:
    """Start ``fcrund`` for this home as a daemon, unless it answers already; returns when it answers.

    A lock file lets only one live, so concurrent calls are safe. Raises Unavailable with the daemon's own words.
    """
    client = NodeClient(home)
    try:
        client.system(timeout_s=5.0, brief=True)
        return
    except NoRights:
        raise
    except PerdureError:
        pass  # nothing listens, or it is just dying: the lock decides
    import os
    import subprocess
    import sys

    from perdure.host.processes import whole

    environ = {**os.environ, "PERDURE_HOME": str(home.root), "PERDURE_CACHE": str(home.cache)}
    starting: subprocess.Popen[bytes] | None = None
    try:
        with whole():
            starting = subprocess.Popen(
                [sys.executable, "-m", "perdure.node", "--detach"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                env=environ,
                start_new_session=True,
            )
        _, said = starting.communicate()
    except KeyboardInterrupt:
        if starting is not None:
            starting.wait()  # half a start could not be found and ended; a daemon that serves can
        raise
    if starting.returncode != 0:
        end = said.decode(errors="replace").strip().splitlines()[-1:]
        raise Unavailable(
            "the node daemon (fcrund) did not start: " + (end[0] if end else f"status {starting.returncode}"),
            hint=f"read {home.run / 'fcrund.log'}",
        )

"""Images made by hand, as OCI layouts that skopeo copies, and a registry that serves whatever a test wants."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import re
import ssl
import tarfile
import threading
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import zstandard

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
OTHER_ARCHITECTURE = {"amd64": "arm64", "arm64": "amd64"}[ARCHITECTURE]
_MACHINES = {"amd64": 62, "arm64": 183}  # e_machine (elf(5))
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def root_layer(files: dict[str, bytes] | None = None, architecture: str = ARCHITECTURE) -> bytes:
    """The tar of a root file system with one program, and these files."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little")
    program = head + _MACHINES[architecture].to_bytes(2, "little") + bytes(44)
    return tar({"bin/init": program, **(files or {})})


def tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(data), 0o755, 1_600_000_000
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


def packed(layer: bytes, how: str) -> bytes:
    """``how``: "", "+gzip", "+zstd"."""
    if how == "+gzip":
        return gzip.compress(layer, mtime=0)
    return zstandard.compress(layer) if how == "+zstd" else layer


@dataclass
class HandMade:
    """Blobs and manifests by digest."""

    blobs: dict[str, bytes] = field(default_factory=dict)

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Its descriptor."""
        self.blobs[digest_of(data)] = data
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    def document(self, value: Any, media_type: str) -> dict[str, Any]:
        return self.blob(json.dumps(value).encode(), media_type)

    def image(
        self,
        layers: Sequence[bytes],
        how: str = "+gzip",
        *,
        architecture: str = ARCHITECTURE,
        docker: bool = False,
        config: dict[str, Any] | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        """The descriptor of an image's manifest. ``changes`` replace members of it."""
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {"Cmd": ["/bin/init"]},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
            "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
        }
        kinds = (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER) if docker else (MANIFEST, CONFIG, LAYER + how)
        manifest = {
            "schemaVersion": 2,
            "mediaType": kinds[0],
            "config": self.document(document, kinds[1]),
            "layers": [self.blob(packed(layer, how), kinds[2]) for layer in layers],
            **changes,
        }
        return self.document(manifest, kinds[0])

    def index(self, manifests: Sequence[tuple[dict[str, Any], str]], media_type: str = INDEX) -> dict[str, Any]:
        """The descriptor of an index of (manifest, ``OS/ARCH[/VARIANT]``)."""
        named = []
        for manifest, words in manifests:
            parts = dict(zip(("os", "architecture", "variant"), words.split("/"), strict=False))
            named.append({**manifest, "platform": parts})
        return self.document({"schemaVersion": 2, "mediaType": media_type, "manifests": named}, media_type)

    def upload(self, host: str, repository: str, named: dict[str, Any], tag: str) -> None:
        """Into a registry without TLS, as it is: blobs, manifests by their digests, the tag."""
        base = f"http://{host}/v2/{repository}"
        manifests = []
        for digest, data in self.blobs.items():
            media_type = json.loads(data).get("mediaType", "") if data[:1] == b"{" else ""
            if "manifest" in media_type or "index" in media_type:
                manifests.append((digest, data, media_type))
                continue
            begun = urllib.request.urlopen(urllib.request.Request(f"{base}/blobs/uploads/", b"", method="POST"))
            place = f"{begun.headers['Location']}&digest={digest}"
            headers = {"Content-Type": "application/octet-stream"}
            urllib.request.urlopen(urllib.request.Request(place, data, headers, method="PUT")).close()
            begun.close()
        for digest, data, media_type in manifests:
            for name in (digest, tag) if digest == named["digest"] else (digest,):
                headers = {"Content-Type": media_type}
                asked = urllib.request.Request(f"{base}/manifests/{name}", data, headers, method="PUT")
                urllib.request.urlopen(asked).close()

    def layout(self, folder: Path, named: dict[str, Any], name: str = "x") -> str:
        """An OCI layout with it; what skopeo calls it."""
        (folder / "blobs" / "sha256").mkdir(parents=True)
        for digest, data in self.blobs.items():
            (folder / "blobs" / "sha256" / digest.removeprefix("sha256:")).write_bytes(data)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        entry = {**named, "annotations": {"org.opencontainers.image.ref.name": name}}
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        return f"oci:{folder}:{name}"


@dataclass(frozen=True)
class Request:
    """What a registry was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


Answer = tuple[int, dict[str, str], bytes]


class FakeRegistry:
    """Serves hand-made images: what tags and digests name, and blobs, in ranges where they are asked for.

    ``tags`` are descriptors by name. ``answer`` is asked first: what it gives is the answer. ``tls``: the files of a
    certificate and its key. A context manager.
    """

    def __init__(
        self,
        made: HandMade,
        tags: dict[str, dict[str, Any]] | None = None,
        *,
        address: str = "127.0.0.1",
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self.made = made
        self.tags = dict(tags or {})
        self.answer: Callable[[Request], Answer | None] = lambda request: None
        self.asked: list[Request] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self.command, self.path, dict(self.headers.items()), sent)
                fake.asked.append(request)
                status, headers, data = fake.answer(request) or fake.serve(request)
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)
                if int(headers.get("Content-Length", len(data))) != len(data):
                    self.close_connection = True

            do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 - names of http.server

            def log_message(self, *args: object) -> None:
                """Quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away is what these tests are about."""

        self.server = Server((address, 0), Handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.host = f"{address}:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self) -> FakeRegistry:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def serve(self, request: Request) -> Answer:
        """As a registry does."""
        if request.path.rstrip("/") == "/v2":
            return 200, {}, b"{}"
        name = request.path.rpartition("/")[2]
        if "/manifests/" in request.path:
            named = self.tags.get(name)
            digest = named["digest"] if named else name
            data = self.made.blobs.get(digest)
            if data is None:
                return 404, {}, b"{}"
            media_type = named["mediaType"] if named else json.loads(data).get("mediaType", MANIFEST)
            return 200, {"Content-Type": media_type}, data
        data = self.made.blobs.get(name)
        if data is None:
            return 404, {}, b"{}"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if not wanted:
            return 200, {}, data
        start, end = int(wanted[1]), int(wanted[2]) + 1
        return 206, {"Content-Range": f"bytes {start}-{min(end, len(data)) - 1}/{len(data)}"}, data[start:end]

"""A package index for tests: wheels that are made on the spot, served as the simple API has it (PEP 503)."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def wheel(
    name: str, version: str, files: Mapping[str, str | bytes], *, requires: Sequence[str] = (), python: str = ""
) -> bytes:
    """The file of a wheel (packaging.python.org, "Binary distribution format")."""
    info = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {one}" for one in requires]
    lines += [f"Requires-Python: {python}"] if python else []
    content: dict[str, str | bytes] = {**files, f"{info}/METADATA": "\n".join(lines) + "\n"}
    content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    bodies = {path: body.encode() if isinstance(body, str) else body for path, body in content.items()}
    record = [f"{path},sha256={_digest(body)},{len(body)}" for path, body in bodies.items()]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path, body in {**bodies, f"{info}/RECORD": "\n".join([*record, f"{info}/RECORD,,"]).encode()}.items():
            zipped.writestr(zipfile.ZipInfo(path), body)
    return made.getvalue()


def _digest(body: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()


class Index:
    """``asked``: paths, in order. ``silent``: nothing is answered while it is not set; ``reached``: it was asked then,
    ``left``: whoever asked then has gone."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, tuple[bytes, str, str]]] = {}  # by package and file: bytes, digest, python
        self.asked: list[str] = []
        self.silent = False
        self.reached, self.left = threading.Event(), threading.Event()
        self.url = ""

    def add(
        self,
        name: str,
        version: str,
        files: Mapping[str, str | bytes] | None = None,
        *,
        tag: str = "py3-none-any",
        requires: Sequence[str] = (),
        python: str = "",
    ) -> str:
        """A wheel: a module of its name with ``VERSION``, unless it is said. Returns its file's name."""
        files = files or {f"{name}.py": f"VERSION = {version!r}\n"}
        content = wheel(name, version, files, requires=requires, python=python)
        file = f"{name}-{version}-{tag}.whl"
        self.put(name, file, content, python=python)
        return file

    def add_source(self, name: str, version: str, setup: str = "raise SystemExit('built')") -> str:
        """A source distribution."""
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w:gz") as tar:
            for path, text in {"setup.py": setup, "PKG-INFO": f"Name: {name}\nVersion: {version}\n"}.items():
                member = tarfile.TarInfo(f"{name}-{version}/{path}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text.encode()))
        file = f"{name}-{version}.tar.gz"
        self.put(name, file, made.getvalue())
        return file

    def put(self, name: str, file: str, content: bytes, *, digest: str = "", python: str = "") -> None:
        told = digest or hashlib.sha256(content).hexdigest()
        self.files.setdefault(name, {})[file] = (content, told, python)

    def page(self, path: str) -> bytes | None:
        """None: not there."""
        parts = path.strip("/").split("/")
        found = self.files.get(parts[1]) if len(parts) > 1 else None
        if found is None or parts[0] not in ("simple", "files"):
            return None
        if parts[0] == "files":
            return found[parts[2]][0] if parts[2] in found else None
        lines = [
            f'<a href="/files/{parts[1]}/{file}#sha256={digest}"'
            + (f' data-requires-python="{python.replace("<", "&lt;").replace(">", "&gt;")}"' if python else "")
            + f">{file}</a>"
            for file, (_, digest, python) in found.items()
        ]
        return ("<!DOCTYPE html><html><body>" + "\n".join(lines) + "</body></html>").encode()


def settings(index: Index) -> dict[str, str]:
    """The environment of a pip that asks this index and nobody else."""
    given = {"PIP_INDEX_URL": f"{index.url}/simple", "PIP_CONFIG_FILE": os.devnull, "no_proxy": "127.0.0.1"}
    return {"PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0", **given}


@contextmanager
def serving(index: Index) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.asked.append(self.path)
            if index.silent:
                index.reached.set()
                self.connection.settimeout(60.0)
                if not self.connection.recv(1):
                    index.left.set()
                return
            page = index.page(self.path)
            self.send_response(404 if page is None else 200)
            kind = "text/html" if self.path.startswith("/simple") else "application/octet-stream"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(page or b"")))
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *told: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    index.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

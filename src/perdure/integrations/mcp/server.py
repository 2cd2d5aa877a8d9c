"""The MCP server: its tools, over stdio, or over HTTP on a port of this machine (``perdure mcp``).

On stdio it serves whoever started it. A port is open to every user of the machine, and to web pages in their browsers,
so over HTTP a request shows a token, and is refused where its Host or Origin is another one than this machine.

Facts of the interface: ``mcp`` 2.3; the protocol is https://modelcontextprotocol.io, streamable HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer

from perdure import __version__
from perdure.client.node import NodeClient
from perdure.client.server import ServerClient
from perdure.errors import InvalidValue, Unavailable
from perdure.host.identity import node_home
from perdure.host.paths import Home
from perdure.integrations.mcp.runs import RunTools
from perdure.integrations.mcp.sandboxes import SandboxTools

PATH = "/mcp"
BODY_BYTES = 32 << 20  # of a request: a file that is written
GOODBYE_S = 2  # for answers that are under way when it ends
LOOPBACK = ("127.0.0.1", "localhost", "::1")
INSTRUCTIONS = (
    "Sandboxes are microVMs with files and processes that stay: make one with sandbox_create and work in it with "
    "sandbox_exec. They can be put to sleep, taken back to a snapshot, and forked with all that runs in them. Runs are "
    "durable executions of agents: start one with run_start, wait for it with run_result, see what it did with run_log."
)

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


def make(home: Home, environ: Mapping[str, str] | None = None) -> MCPServer[Any]:
    """The MCP server of a home: of its server, and its node (or that of FCRUN_HOST), which is started when a tool first
    needs it. Nothing is asked before a tool is called."""
    given = os.environ if environ is None else environ
    made = MCPServer("perdure", title="Perdure", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING")

    SandboxTools(lambda: _answering(NodeClient.named(given, node_home(home)))).offer(made)
    RunTools(ServerClient(home), lambda: _answering(NodeClient(node_home(home)))).offer(made)
    return made


def _answering(node: NodeClient) -> NodeClient:
    node.ensure()
    return node


def over_stdio(home: Home) -> None:
    """Serve who started this process, until its stdin ends."""
    make(home).run("stdio")


def over_http(home: Home, address: str, token: str = "") -> None:
    """Serve on ``HOST:PORT`` of this machine (port 0: one that is free) until a signal. token: what requests show; "":
    a new one. Where and with which is in ``run/mcp-PORT.json``, mode 0600. InvalidValue, Unavailable."""
    host, port = _place(address)
    token = token or secrets.token_hex(16)
    with _listening(host, port) as link:
        port = link.getsockname()[1]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"
        server = make(home)
        app = _guarded(server.streamable_http_app(host=host, max_request_body_size=BODY_BYTES), token)
        config = uvicorn.Config(
            app,
            ws="none",
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=GOODBYE_S,
        )
        with _told(home.run / f"mcp-{port}.json", {"url": url, "token": token, "pid": os.getpid()}) as place:
            signal.signal(signal.SIGTERM, _leave)
            sys.stderr.write(f"mcp: {url}  (Authorization: Bearer TOKEN; the token is in {place})\n")
            asyncio.run(uvicorn.Server(config).serve(sockets=[link]))


def _leave(*_: object) -> None:
    """uvicorn has ended then, and sends itself the signal again: what is left is to clean up."""
    raise SystemExit(0)


def _place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not port.isdecimal() or int(port) > 65535 or not host:
        raise InvalidValue(f"--http {address!r} is not HOST:PORT", hint="Write 127.0.0.1:7300.")
    if host not in LOOPBACK:
        raise InvalidValue(
            f"--http {address}: without TLS its token would be read on the way",
            hint="Listen on 127.0.0.1, and let a proxy with TLS in front of it, or ssh, bring others there.",
        )
    return host, int(port)


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
        )
    except OSError as error:
        hint = "Take another port, or 0 for one that is free."
        raise Unavailable(f"{host}:{port}: {error.strerror}", hint=hint) from error


@contextlib.contextmanager
def _told(path: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """The facts are in the file as long as this lasts, for its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of one that was killed
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(facts, file)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _guarded(app: _App, token: str) -> _App:
    """The same application for who shows the token."""
    wanted = token.encode()

    async def guard(scope: _Scope, receive: _Receive, send: _Send) -> None:
        scheme, _, shown = dict(scope.get("headers", ())).get(b"authorization", b"").partition(b" ")
        is_known = scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), wanted)
        if scope["type"] == "lifespan" or is_known:
            with contextlib.suppress(asyncio.CancelledError):  # uvicorn ends, and would tell each one's traceback
                await app(scope, receive, send)
            return
        said = {"error": {"code": "unauthorized", "message": "this request has no valid token"}}
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})

    return guard

"""perdured: builds the control plane, serves its API, and ends in order. Machines outlive it.

``run/server.json`` is ``{"url", "pid", "token", "fingerprint"}`` of the server that serves this home (mode 0600);
``fingerprint`` is of the certificate of its TCP port, and empty where that is on loopback, without TLS.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import secrets
import signal
import socket
import sys
import time
from pathlib import Path

from aiohttp import web

from perdure.context.faults import Faults
from perdure.errors import AlreadyRunning, InvalidValue
from perdure.gateway.gateway import Gateway
from perdure.gateway.prices import load as load_prices
from perdure.gateway.providers import load as load_providers
from perdure.gateway.toolsecrets import load as load_secrets
from perdure.host.paths import Home
from perdure.model import settle
from perdure.runs.clock import SYSTEM
from perdure.runs.engine import Engine
from perdure.runs.hooks import Courier
from perdure.runs.retention import Retention
from perdure.server.api import Api
from perdure.server.database import ServerLog
from perdure.server.elsewhere import Elsewhere
from perdure.server.hooks import HookSender
from perdure.server.hooks import load as load_hooks
from perdure.server.machines import NodeMachines
from perdure.server.packages import Packages
from perdure.server.settings import keep_s as keep_logs_s
from perdure.server.settings import load as load_settings
from perdure.server.sharing import load as load_sharing
from perdure.server.sharing import secured, tenure
from perdure.server.workerlimit import limit as workers_limit
from perdure.server.workers import Workers

GRACE_S = 2.0  # for open requests when the server ends

log = logging.getLogger(__name__)


async def serve(home: Home) -> None:
    """Run the server until SIGTERM or SIGINT. AlreadyRunning: another one serves this home."""
    settle()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    providers, settings, sharing = load_providers(home), load_settings(home), load_sharing(home)
    prices, tool_secrets = load_prices(home), load_secrets(home)
    hooks, hook_secret = load_hooks(home)
    keep_s = keep_logs_s(home)
    faults = Faults.wanted(os.environ)
    try:
        kept = await ServerLog.open(home, faults)
    except AlreadyRunning as error:
        raise _already_running(home, error) from error
    try:
        tls, fingerprint = secured(home, sharing)  # with the home's lock: two that begin make one certificate
    except BaseException:
        await kept.close()
        raise
    context = kept.context
    path, record = home.socket("perdured"), home.run / "server.json"
    settings = dataclasses.replace(settings, snapshot_store=sharing.snapshots)
    machines = NodeMachines(sharing.node)
    packages = machines.packages = Packages(home, context, machines.python_of)
    workers = Workers(home, workers_limit(home), packages)
    gateway = Gateway(context, providers, prices=prices)
    calls_url = f"unix:{path}:/v1/calls"
    secret = _secret(home, faults)
    engine = Engine(
        context,
        machines,
        gateway,
        calls_url=calls_url,
        secret=secret,
        settings=settings,
        workers=workers,
        secrets=tool_secrets,
    )
    engine.packs.packages = packages
    sender = HookSender()
    engine.courier = Courier(context, SYSTEM, sender, hooks, hook_secret)
    engine.retention = None if keep_s is None else Retention(context, SYSTEM, keep_s)
    # Who comes now waits until the runs are taken up.
    unix, tcp = _listen_unix(path), _listen_tcp(sharing.host, sharing.port)
    token, scheme = secrets.token_hex(16), "http" if tls is None else "https"
    url = f"{scheme}://{_shown(_reached(sharing.host))}:{tcp.getsockname()[1]}"
    elsewhere = None
    if context.leases is not None:
        facts = {"url": url, "token": token, "fingerprint": fingerprint, "node": machines.node.id}
        engine.tenure = tenure(home, context.leases, engine, sharing.terms, facts)
        elsewhere = Elsewhere(context.leases, engine.has)
        engine.elsewhere = elsewhere
    started = time.time()
    named = list(providers.by_name)
    api = Api(home, engine, context, elsewhere, providers=named, url=url, token=token, started=started)
    api.node = sharing.node
    runner = api.runner()
    try:
        await engine.open()
        await runner.setup()
        for listening, context_of in ((unix, None), (tcp, tls)):
            await web.SockSite(runner, listening, shutdown_timeout=GRACE_S, ssl_context=context_of).start()
        told = {"url": url, "pid": os.getpid(), "token": token, "fingerprint": fingerprint}
        _write_private(record, json.dumps(told), faults)
        log.info("serving %s on %s and %s, pid %d", home.root, path, url, os.getpid())
        await over.wait()
        log.info("ending")
    finally:
        record.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        await engine.close()
        await workers.close()
        await runner.cleanup()
        await sender.close()
        await gateway.close()
        await tool_secrets.close()
        if elsewhere is not None:
            await elsewhere.close()
        machines.close()
        await kept.close()


def _already_running(home: Home, error: AlreadyRunning) -> AlreadyRunning:
    try:
        known = json.loads((home.run / "server.json").read_bytes())
    except (OSError, ValueError):
        return error
    message = f"a server (pid {known.get('pid')}, {known.get('url')}) serves {home.root} already"
    hint = "Use it, end it with `perdure down`, or set PERDURE_HOME to another folder."
    return AlreadyRunning(message, hint=hint, pid=known.get("pid"), url=known.get("url"))


def _secret(home: Home, faults: Faults | None) -> bytes:
    """What machines' tokens are made with. It outlives the server, as machines do."""
    path = home.root / "server.secret"
    if not path.exists():
        _write_private(path, secrets.token_hex(32), faults)
    return path.read_bytes()


def _write_private(path: Path, text: str, faults: Faults | None) -> None:
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if faults:
        faults.reach("before", [f"file.{path.name}"])
    new.rename(path)
    if faults:
        faults.reach("after", [f"file.{path.name}"])


def _listen_unix(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # of a server that was killed: the home's lock says that none lives
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    path.chmod(0o600)
    listening.listen(512)
    listening.setblocking(False)
    return listening


def _reached(host: str) -> str:
    """By others: where it listens on all addresses, by this machine's name."""
    return socket.gethostname() if host in ("0.0.0.0", "::") else host


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listen_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        hint = "Another program has that port, or this machine not that address: see [servers] listen."
        raise InvalidValue(f"cannot listen on {_shown(host)}:{port}: {error.strerror}", hint=hint) from error
    listening.setblocking(False)
    return listening


def run(home: Home) -> int:
    """In the foreground, logging to stderr."""
    home.make()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    asyncio.run(serve(home))
    return 0

"""perdure status"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.model import RunInfo

NAME = "status"
HELP = "Show the server, or one run"
GROUP = "This machine"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", nargs="?", metavar="RUN", help="id, unique prefix of it, or name")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(options: argparse.Namespace) -> int:
    import json

    import msgspec

    from perdure.client.server import ServerClient

    server = ServerClient()
    if options.run_id is None:
        status = server.status()
        print(json.dumps(status) if options.json else _server(status))
        return 0
    info = server.get(options.run_id)
    print(msgspec.json.encode(info).decode() if options.json else _run(info))
    return 0


def _lines(pairs: list[tuple[str, Any]]) -> str:
    return "\n".join(f"{name:<10}  {value}" for name, value in pairs if value not in ("", None))


def _server(status: dict[str, Any]) -> str:
    from perdure.cli.perdure._words import clock

    runs = ", ".join(f"{count} {state}" for state, count in status.get("runs", {}).items() if count)
    return _lines(
        [
            ("server", f"pid {status['pid']}, version {status.get('version', '?')}"),
            ("address", status.get("url")),
            ("state in", status.get("home")),
            ("database", status.get("database")),
            ("started", clock(status["started"], day=True) if status.get("started") else ""),
            ("runs", runs or "none"),
            ("servers", f"{status['servers']} on this database" if status.get("servers", 1) > 1 else ""),
        ]
    )


def _run(info: RunInfo) -> str:
    from perdure.cli.perdure import _words
    from perdure.cli.perdure._words import clock, size, value

    stored = info.snapshot
    waits = [f"{wait['kind']} {wait['id']}: {wait.get('name', '')}" for wait in info.waits]
    return _lines(
        [
            ("run", info.id),
            ("state", info.state.value),
            ("agent", info.agent),
            ("image", info.image),
            ("created", clock(info.created, day=True)),
            ("input", "" if info.input is None else value(info.input, 86)),
            ("log", f"{info.seq} entries, branch {info.branch}, epoch {info.epoch}"),
            ("turns", f"{info.turns_asked} asked, {info.turns_replayed} answered from the log"),
            ("recoveries", info.recoveries or ""),
            ("sleeps", _words.sleeps(info)),
            ("policy", _words.policy(info.policy)),
            ("snapshot", size(stored.stored_bytes) if stored else ""),
            *[("", _words.checkpoint(one)) for one in info.snapshots],
            *[("waits for", wait) for wait in waits],
            ("result", "" if info.result is None else value(info.result, 86)),
            ("error", (info.error or {}).get("message", "")),
        ]
    )

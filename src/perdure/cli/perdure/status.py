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

    error = status.get("error") or {}
    runs = ", ".join(f"{count} {state}" for state, count in status.get("runs", {}).items() if count)
    return _lines(
        [
            ("server", f"pid {status['pid']}, version {status.get('version', '?')}"),
            ("address", status.get("url")),
            ("state in", status.get("home")),
            ("database", status.get("database")),
            ("started", clock(status["started"], day=True) if status.get("started") else ""),
            ("runs", "" if error else runs or "none"),
            ("logs", f"dropped {status['keep_days']:g} days after a run's end" if status.get("keep_days") else ""),
            ("servers", f"{status['servers']} on this database" if status.get("servers", 1) > 1 else ""),
            ("error", error.get("message")),
            ("", error.get("hint")),
        ]
    )


def _run(info: RunInfo) -> str:
    from perdure.cli.perdure import _words
    from perdure.cli.perdure._words import clock, size, value
    from perdure.errors import in_words

    stored = info.snapshot
    waits = [list(_words.waits(wait)) for wait in info.waits]
    error = info.error or {}
    return _lines(
        [
            ("run", info.id),
            ("name", info.name),
            ("state", info.state.value),
            ("agent", info.agent),
            ("image", info.image),
            ("durability", info.durability),
            ("created", clock(info.created, day=True)),
            ("parent", info.parent),
            ("forked", f"from run {info.origin.run_id}, entry {info.origin.seq}" if info.origin else ""),
            ("queue", info.queue or ""),
            ("key", info.key or ""),
            ("tags", ", ".join(f"{name}={text}" for name, text in sorted(info.tags.items()))),
            ("metadata", "" if info.metadata is None else value(info.metadata, 86)),
            ("input", "" if info.input is None else value(info.input, 86)),
            ("log", f"{info.seq} entries, branch {info.branch}, epoch {info.epoch}"),
            ("turns", f"{info.turns_asked} asked, {info.turns_replayed} answered from the log"),
            ("spent", _words.spent(info.spent)),
            ("budget", _words.budget(info)),
            ("attempt", info.attempt if info.attempt > 1 else ""),
            ("recoveries", info.recoveries or ""),
            ("sleeps", _words.sleeps(info)),
            ("asleep", _words.asleep(info)),
            ("policy", _words.policy(info.policy)),
            ("snapshot", size(stored.stored_bytes) if stored else ""),
            *[("", _words.checkpoint(one)) for one in info.snapshots],
            ("children", " ".join(info.children)),
            *[("" if number else "waits for", line) for lines in waits for number, line in enumerate(lines)],
            ("result", "" if info.result is None else value(info.result, 86)),
            ("error", in_words(error)),
            ("", error.get("hint")),
            *[("", line) for line in _words.traceback(info.error).splitlines()],
        ]
    )

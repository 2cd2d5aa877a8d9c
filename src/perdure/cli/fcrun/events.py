"""fcrun events"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _format

if TYPE_CHECKING:
    from perdure.model import NodeEvent

NAME = "events"
HELP = "Show what happens to sandboxes and images, as it happens"
GROUP = "Sandboxes"

FILTERS = ("type", "event", "sandbox", "container", "image")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", default="", metavar="WHEN", help="seconds since the epoch, RFC 3339, or ago: 10m")
    parser.add_argument("--until", default="", metavar="WHEN", help="end then; without it: go on")
    _format.add_filter(
        parser, "type=sandbox or image, event=started, sandbox=NAME or id, image=NAME; of one key any, of several all"
    )
    parser.add_argument("--format", default="", metavar="FORMAT", help="'json', or a template such as '{{.Action}}'")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._moment import moment
    from perdure.cli.fcrun._node import node

    wanted = _filters(options.filter)
    since = moment(options.since, "--since") if options.since else None
    until = moment(options.until, "--until") if options.until else None
    if until is not None and since is None:
        since = 0.0
    with node() as client:
        for event in client.events(since=since, until=until):
            row = _row(event)
            if all(any(_matches(row, key, value) for value in values) for key, values in wanted.items()):
                print(_line(row, options.format), flush=True)
    return 0


def _filters(texts: list[str]) -> dict[str, list[str]]:
    from perdure.errors import InvalidValue

    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in FILTERS:
            raise InvalidValue(f"--filter: {text!r}", hint="Use type=, event=, sandbox= or image=.")
        found.setdefault("sandbox" if key == "container" else key, []).append(value)
    return found


def _row(event: NodeEvent) -> dict[str, object]:
    """With docker's fields: Type, Action, Actor (ID, Attributes), time in seconds and nanoseconds."""
    kind, _, action = event.kind.partition(".")
    details = {name: value for name, value in event.details.items() if value not in ("", None)}
    actor = event.sandbox_id or str(details.get("digest", ""))
    return {
        "Type": kind,
        "Action": action,
        "Actor": {"ID": actor, "Attributes": details},
        "time": int(event.time),
        "timeNano": int(event.time * 1e9),
    }


def _matches(row: dict[str, object], key: str, value: str) -> bool:
    actor = row["Actor"]
    assert isinstance(actor, dict)
    if key == "type":
        return row["Type"] == value
    if key == "event":
        return value in (row["Action"], str(row["Action"]).partition(":")[0])  # "health_status: healthy"
    if row["Type"] != key:
        return False
    name = str(actor["Attributes"].get("name", ""))
    named = (name, name.partition(":")[0]) if key == "image" else (name,)
    return bool(value) and (value in named or str(actor["ID"]).removeprefix("sha256:").startswith(value))


def _line(row: dict[str, object], template: str) -> str:
    if template == "json":
        return json.dumps(row)
    if template:
        return _format.fill(template, row)
    actor, nanoseconds = row["Actor"], row["timeNano"]
    assert isinstance(actor, dict) and isinstance(nanoseconds, int)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(nanoseconds // 10**9))
    details = ", ".join(f"{name}={value}" for name, value in sorted(actor["Attributes"].items()))
    told = f"{stamp}.{nanoseconds % 10**9:09}Z {row['Type']} {row['Action']} {actor['ID']}"
    return f"{told} ({details})" if details else told

"""fcrun system audit"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.model import AuditEntry

NAME = "audit"
HELP = "Show who did what to the node, and what was refused"
GROUP = "System"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", default="", metavar="WHEN", help="seconds since the epoch, RFC 3339, or ago: 10m")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is to come")
    parser.add_argument("--format", default="", choices=("json",), help="one JSON object a line, as it is kept")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._moment import moment
    from perdure.cli.fcrun._node import node

    since = moment(options.since, "--since") if options.since else None
    with node() as client:
        for entry in client.border.audit(since=since, follow=options.follow):
            text = json.dumps(msgspec.to_builtins(entry)) if options.format == "json" else line(entry)
            print(text, flush=options.follow)
    return 0


def line(entry: AuditEntry) -> str:
    """One entry for people."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.time))
    words = [stamp, _who(entry), entry.source, f"{entry.method} {entry.route}".strip() or "no HTTP"]
    if entry.ref:
        words.append(json.dumps(entry.ref) if not entry.ref.isprintable() else entry.ref)
    if entry.sandboxes and entry.sandboxes != [entry.ref]:
        words.append(f"({', '.join(entry.sandboxes)})")
    words.append("begun" if entry.phase == "begun" else f"{entry.status} {entry.code}".strip())
    if entry.times > 1:
        words.append(f"and {entry.times - 1} more like it")
    if entry.lost:
        words.append(f"({entry.lost} before it were lost)")
    return " ".join(words)


def _who(entry: AuditEntry) -> str:
    if "token" in entry.who:
        return f"token {entry.who.get('name', '')} ({entry.who['token']})"
    if "uid" in entry.who:
        return f"uid {entry.who['uid']} (pid {entry.who.get('pid')})"
    return "nobody"

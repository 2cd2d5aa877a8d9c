"""perdure servers"""

from __future__ import annotations

import argparse

NAME = "servers"
HELP = "List the servers that share this one's database"
GROUP = "This machine"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="only the ids")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(options: argparse.Namespace) -> int:
    import json

    from perdure.cli.perdure import _words
    from perdure.client.server import ServerClient

    found = ServerClient().servers()
    if options.json or options.quiet:
        for server in found:
            if options.json:
                print(json.dumps(server))
            elif "server" in server:  # one on SQLite shares nothing, and has no id
                print(server["server"])
        return 0
    rows = [
        [
            server.get("server", "-"),
            str(server.get("lease", "-")),
            str(server["url"]),
            str(server["pid"]),
            str(server.get("host", "-")),
            str(server.get("node", "-")),
            str(server["version"]),
            str(server["runs"]),
            f"{server['heartbeat_age_s']:.1f} s ago" if "heartbeat_age_s" in server else "-",
        ]
        for server in found
    ]
    print(_words.table(["SERVER", "LEASE", "URL", "PID", "HOST", "NODE", "VERSION", "RUNS", "HEARTBEAT"], rows), end="")
    return 0

"""fcrun token create"""

from __future__ import annotations

import argparse
import json
import sys

NAME = "create"
HELP = "Make a token, and print it: it is shown only now"
GROUP = "System"
SCOPES = ("all", "own", "read")
DESCRIPTION = (
    f"{HELP}. Scope `own` sees and uses only the sandboxes that it made, and what comes of them (forks, snapshots, "
    "logs, files); nobody else's are there for it. Scope `read` sees everything, and changes and runs nothing. Scope "
    "`all` may do what root may on the node."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="", help="what to call it (default: token-ID)")
    parser.add_argument("--scope", default="own", choices=SCOPES, help="what it is good for (own)")
    parser.add_argument("--expires", default="", metavar="TIME", help="how long it is good: 12h, 30d (for ever)")
    parser.add_argument("--format", default="", choices=("json",), help="with its id, name, scope and expiry")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._moment import duration
    from perdure.cli.fcrun._node import node

    expires_s = duration(options.expires, "--expires") if options.expires else None
    with node() as client:
        info, text = client.border.create_token(name=options.name, scope=options.scope, expires_s=expires_s)
    if options.format == "json":
        print(json.dumps(msgspec.to_builtins(info) | {"token": text}))
        return 0
    print(text)
    if sys.stdout.isatty():
        sys.stderr.write(f"Token {info.name} (scope {info.scope}). It is not shown again; give it by FCRUN_TOKEN.\n")
    return 0

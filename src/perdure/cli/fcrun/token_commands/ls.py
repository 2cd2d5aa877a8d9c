"""fcrun token ls"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _format

if TYPE_CHECKING:
    from perdure.model import TokenInfo

NAME = "ls"
HELP = "List the tokens, never their secrets"
GROUP = "System"
COLUMNS = {"ID": "TOKEN ID", "Name": "NAME", "Scope": "SCOPE", "CreatedSince": "CREATED", "Expires": "EXPIRES"}


def configure(parser: argparse.ArgumentParser) -> None:
    _format.add_options(parser, quiet="ids only")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node

    with node() as client:
        tokens = client.border.tokens()
    if options.quiet:
        print("".join(f"{token.id}\n" for token in tokens), end="")
        return 0
    _format.show([_row(token) for token in tokens], msgspec.to_builtins(tokens), COLUMNS, options.format)
    return 0


def _row(token: TokenInfo) -> dict[str, str]:
    return {
        "ID": token.id,
        "Name": token.name,
        "Scope": token.scope,
        "CreatedSince": f"{_format.ago(token.created)} ago",
        "Expires": _expires(token.expires),
    }


def _expires(moment: float | None) -> str:
    if moment is None:
        return "never"
    now = time.time()
    if moment <= now:
        return f"{_format.ago(moment)} ago"
    return f"in {_format.ago(now, lambda: moment)}"

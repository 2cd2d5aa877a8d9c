"""perdure approve"""

from __future__ import annotations

import argparse
from typing import Any

NAME = "approve"
HELP = "Answer what a run asks a person"
GROUP = "People"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
    parser.add_argument("--wait", metavar="ID", help="which wait, where the run has several")
    parser.add_argument("--deny", action="store_true", help="say no")
    parser.add_argument("--comment", default="", help="what the agent gets to read")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="fill in a field of the form")
    parser.add_argument("--by", default="", metavar="NAME", help="who answers (your user name)")


def run(options: argparse.Namespace) -> int:
    import os

    from perdure.client.server import ServerClient

    by = options.by or os.environ.get("SUDO_USER") or os.environ.get("USER") or f"uid {os.getuid()}"
    server = ServerClient()
    values = _values(options.set, server.get(options.run_id).waits, options.wait or "") if options.set else {}
    wait = server.approve(
        options.run_id, wait_id=options.wait, approved=not options.deny, comment=options.comment, by=by, values=values
    )
    print(f"{'denied' if options.deny else 'approved'}: {wait.get('name') or wait.get('id')}")
    return 0


def _values(given: list[str], waits: list[dict[str, Any]], wait_id: str) -> dict[str, Any]:
    """What was typed, as the form's fields have it; whether it fits is for the server to say."""
    from perdure.errors import InvalidValue

    kinds = {
        field["name"]: field["type"]
        for wait in waits
        if str(wait["id"]).startswith(wait_id)
        for field in wait.get("form") or []
    }
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise InvalidValue(f"--set {text!r} is not NAME=VALUE")
        values[name] = _typed(value, kinds.get(name, "text"))
    return values


def _typed(text: str, kind: str) -> Any:
    if kind == "boolean":
        return {"true": True, "yes": True, "y": True, "false": False, "no": False, "n": False}.get(text.lower(), text)
    if kind == "number":
        for made in (int, float):
            try:
                return made(text)
            except ValueError:
                continue
    return text

"""perdure diff"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.client.server import ServerClient

NAME = "diff"
HELP = "Compare two runs: where their logs part, what each did since, and their files"
GROUP = "Time travel"
DESCRIPTION = (
    "Compare two runs, or two branches of one (RUN:BRANCH, 'perdure tree' has them): the entry where their logs part, "
    "what each did after it side by side, and what differs in the files of their sandboxes."
)
WORDS = {"added": "+", "removed": "-", "changed": "~"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="RUN or RUN:BRANCH; a run's id, unique prefix of it, or name")
    parser.add_argument("b", metavar="B", help="the same")
    parser.add_argument("--files", metavar="PATH", help="the difference of this file's text, and nothing else")
    parser.add_argument("--log", action="store_true", help="only the logs; no file is read")
    parser.add_argument("--json", action="store_true", help="one JSON object, with the entries and files")


def run(options: argparse.Namespace) -> int:
    import json
    import sys

    from perdure.cli.perdure import _follow
    from perdure.client.server import ServerClient

    server = ServerClient()
    if options.files:
        sys.stdout.writelines(_text(server, options))
        return 0
    found = server.diff(options.a, options.b, files=not options.log)
    if options.json:
        print(
            json.dumps({**found, "after": {side: _entries(server, found, side) for side in "ab"}}, ensure_ascii=False)
        )
        return 0
    columns = _follow.width(sys.stdout.isatty())
    for line in (*_log(server, found, columns), *(() if options.log else _files(found, columns))):
        print(line)
    return 0


def _entries(server: ServerClient, found: dict[str, Any], side: str) -> list[Any]:
    import msgspec

    one, parted = found[side], found["parted"]
    entries = server.entries(one["run_id"], branch=one["branch"], after=parted["seq"] if parted else 0)
    return [msgspec.to_builtins(entry) for entry in entries]


def _log(server: ServerClient, found: dict[str, Any], columns: int) -> Iterator[str]:
    from perdure.cli.perdure import _words
    from perdure.cli.perdure._story import Story

    parted = found["parted"]
    if parted is None:
        yield "log: they have no entry in common"
    else:
        yield f"log: the same up to entry {parted['seq']} (of run {parted['run_id']}, branch {parted['branch']})"
    half = (columns - 3) // 2
    told: list[list[str]] = []
    for side in "ab":
        one = found[side]
        story = Story(half, has_machine=server.get(one["run_id"]).durability != "replay")
        heading = f"{one['run_id']} branch {one['branch']}: {one['seq'] - (parted['seq'] if parted else 0)} entries"
        after = server.entries(one["run_id"], branch=one["branch"], after=parted["seq"] if parted else 0)
        told.append([heading, *(line for entry in after for line in story.lines(entry))])
    for left, right in zip_longest(*told, fillvalue=""):
        left, right = (_words.shorten(text, half, spaces=True) for text in (left, right))
        yield f"{left:<{half}} | {right}".rstrip()


def _files(found: dict[str, Any], columns: int) -> Iterator[str]:
    from perdure.cli.perdure import _words

    if found["files"] is None:
        yield f"files: not compared: {(found['problem'] or {}).get('message', 'unknown')}"
        return
    differing = [one for one in found["files"] if one["change"] != "same"]
    counts = {name: sum(one["change"] == name for one in found["files"]) for name in (*WORDS, "same")}
    yield "files: " + ", ".join(f"{count} {name}" for name, count in counts.items())
    for one in differing:
        sizes = [None if one[name] is None else _words.size(one[name]) for name in ("a_bytes", "b_bytes")]
        shown = " -> ".join(size for size in sizes if size is not None)
        room = columns - 4 - len(shown)
        yield f"{WORDS[one['change']]} {_words.shorten(one['path'], room):<{room}}  {shown}"


def _text(server: ServerClient, options: argparse.Namespace) -> Iterator[str]:
    import difflib

    from perdure.errors import InvalidValue

    texts = []
    for ref in (options.a, options.b):
        run, _, branch = ref.partition(":")
        if branch:
            raise InvalidValue("--files compares runs as they are now", hint="Name runs, without branches.")
        content = server.file(run, options.files)
        try:
            texts.append(content.decode().splitlines(keepends=True))
        except UnicodeDecodeError as error:
            raise InvalidValue(f"{options.files} of run {run} is not text") from error
    names = [f"{ref}:{options.files}" for ref in (options.a, options.b)]
    for line in difflib.unified_diff(texts[0], texts[1], names[0], names[1]):
        yield line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"

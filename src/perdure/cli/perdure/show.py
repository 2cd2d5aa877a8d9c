"""perdure show"""

from __future__ import annotations

import argparse

NAME = "show"
HELP = "Tell a run's story: who did what, when, at what cost"
GROUP = "Runs"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")


def run(options: argparse.Namespace) -> int:
    import sys

    from perdure.cli.perdure import _follow, _words
    from perdure.cli.perdure._story import Story
    from perdure.client.server import ServerClient

    server = ServerClient()
    info = server.get(options.run_id)
    columns = _follow.width(sys.stdout.isatty())
    print(_words.shorten(f"run {info.id}  {info.agent}  {info.state.value}", columns))
    story = Story(columns)
    last = info.created
    for entry in server.entries(info.id):
        last = entry.time
        for line in story.lines(entry):
            print(line)
    for wait in info.waits:
        for number, line in enumerate(_words.waits(wait)):
            print(_words.shorten(line if number else f"waits for: {line}", columns, spaces=True))
    if info.parent:
        print(f"parent: {info.parent}")
    if info.children:
        print(f"children: {' '.join(info.children)}")
    turns = f"{info.turns_asked} asked, {info.turns_replayed} answered from the log"
    if spent := _words.spent(info.spent):
        print(f"spent: {spent}")
    if budget := _words.budget(info):
        print(f"budget: {budget}")
    if slept := _words.sleeps(info):
        print(f"sleeps: {slept}")
    if asleep := _words.asleep(info):
        print(f"asleep: {asleep}")
    if place := _words.place(info):
        print(_words.shorten(f"machine: {place}", columns, spaces=True))
    print(f"policy: {_words.policy(info.policy)}")
    print(f"{_words.duration(last - info.created)}  turns: {turns}  recoveries: {info.recoveries}  entries: {info.seq}")
    return 0

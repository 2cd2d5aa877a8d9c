"""fcrun doctor"""

from __future__ import annotations

import argparse
import json

NAME = "doctor"
HELP = "Examine this machine: what it offers to microVMs, and what to do where it lacks something"
GROUP = "Host"

MARKS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="do not hash the assets again")
    parser.add_argument("--format", default="table", choices=("table", "json"))


def run(options: argparse.Namespace) -> int:
    from perdure.host import probes
    from perdure.host.paths import Home
    from perdure.host.progress import TerminalProgress

    with TerminalProgress() as progress:
        findings = probes.examine(Home.find(), thorough=not options.quick, progress=progress)
    if options.format == "json":
        for one in findings:
            print(json.dumps({"name": one.name, "level": one.level, "found": one.found, "advice": one.advice}))
    else:
        for one in findings:
            print(f"{MARKS[one.level]}  {one.name:<14} {one.found}")
            if one.advice:
                print(f"{'':26}-> {one.advice}")
    return 1 if any(one.level is probes.Level.PROBLEM for one in findings) else 0

"""perdure run"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from perdure.cli.perdure import _lifecycle, _machine
from perdure.cli.perdure._image import DEFAULT_IMAGE, ensure_default, is_default

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from perdure.cli.perdure._follow import Follower
    from perdure.client.server import ServerClient
    from perdure.client.transport import Progress
    from perdure.model import RunInfo

NAME = "run"
HELP = "Start an agent, or any program, as a durable run"
GROUP = "Runs"
DESCRIPTION = (
    "Start an agent (FILE.py:FUNCTION), or with --image any program (-- COMMAND ...), and follow it: its story, and "
    "what an agent prints, on stderr; an agent's result, or what a program prints to it, on stdout. Ctrl-C leaves the "
    "run going on. Exit status: 0 completed, 1 failed or cancelled; of a program that ended by itself its own. "
    "A program's stdin is empty: give it its input by arguments, -e, or a volume."
)


_OF_MACHINES = ("image", "memory", "cpus", "disk", "workdir", "user", "volume", "network", "egress", "checkpoint")


def configure(parser: argparse.ArgumentParser) -> None:
    add_options(parser)
    parser.add_argument("-d", "--detach", action="store_true", help="print the run's id and return")
    parser.add_argument("-q", "--quiet", action="store_true", help="no story: only what it prints, and its result")
    parser.add_argument("--json", action="store_true", help="print the run as JSON, at its end (with -d: at once)")


def add_options(parser: argparse.ArgumentParser, before: str = "") -> None:
    """What is to run, and how. before: another word that comes first."""
    parser.add_argument("words", nargs="*", metavar=f"{before}FILE.py:FUNCTION | -- COMMAND", help="what to run")
    parser.add_argument("-i", "--input", metavar="JSON", help="the agent's input: JSON, @FILE, or - for stdin")
    parser.add_argument("--image", default="", help=f"the image to run in (an agent's: {DEFAULT_IMAGE})")
    _machine.add_options(parser)
    parser.add_argument(
        "--durability",
        choices=("snapshot", "replay"),
        help="snapshot: in a microVM that sleeps and wakes; replay: in a process of this host, which runs the agent's "
        "function again and answers its finished calls from the log (usual: what @agent says)",
    )
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="environment variable")
    parser.add_argument("--name", default="", help="a name to call the run by")
    parser.add_argument("--key", help="start only once: the same key gives the same run")
    parser.add_argument("--key-scope", metavar="NAME", help="what the key is unique in (the agent's name)")
    parser.add_argument("--key-ttl", metavar="TIME", help="after it the key may start another run: 1h, 7d")
    parser.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE", help="to find the run by")
    parser.add_argument("--metadata", metavar="JSON", help="whatever belongs to the run: JSON, @FILE, or - for stdin")
    _lifecycle.add_options(parser)


def run(options: argparse.Namespace) -> int:
    import sys

    from perdure.client.server import ServerClient

    request = request_of(options)  # what is wrong with it is said first
    server = ServerClient()
    server.status()
    if request["durability"] == "snapshot" and is_default(request["image"]):
        request["image"] = ensure_default()
    with packing() as progress:
        info = server.start(**request, progress=progress)
    if options.detach:
        _print(info, as_json=options.json, text=info.id)
        return 0
    is_command = bool(request.get("command"))
    try:
        if options.json:
            info = _ended(server, info)
            _print(info, as_json=True, text="")
            return 0 if info.state == "completed" else _exit_status(info) or 1
        from perdure.cli.perdure._follow import Follower

        if not options.quiet:
            sys.stderr.write(f"run {info.id}\n")
        follower = Follower(server, info.id, is_command=is_command, quiet=options.quiet)
        info = follower.follow()
    except KeyboardInterrupt:
        ways = f"'perdure logs -f {info.id}', 'perdure log {info.id} --follow', 'perdure cancel {info.id}'"
        sys.stderr.write(f"\nrun {info.id} goes on: {ways}\n")
        raise
    return _finish(info, follower, is_command=is_command)


def packing() -> AbstractContextManager[Progress | None]:
    """Where a terminal is told how an agent's packages are brought."""
    import contextlib
    import sys

    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    from perdure.host.progress import TerminalProgress

    return TerminalProgress()


def request_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``ServerClient.start``. InvalidValue, AgentInvalid."""
    from perdure.cli.perdure import _json
    from perdure.client import source
    from perdure.errors import InvalidValue

    request: dict[str, Any] = {"name": options.name, "key": options.key, "env": _environment(options.env)}
    request |= _machine.wishes(options)
    request |= _lifecycle.wishes(options)
    words: list[str] = options.words
    if not words:
        raise InvalidValue("nothing to run", hint=source.FORMS)
    if len(words) == 1 and (":" in words[0] or not options.image):
        agent = source.read(words[0])
        request |= {"source": agent.source, "file": agent.file, "function": agent.function, "modules": agent.modules}
        request["input"] = None if options.input is None else _json.argument(options.input, "--input")
        request = source.completed(request | {"image": options.image, "durability": options.durability})
        if request["durability"] == "replay" and options.on_divergence in ("fork", "live"):
            message = f"--on-divergence {options.on_divergence} is of microVMs: on the replay road such a run fails"
            raise InvalidValue(message, hint="leave it out")
        if request["durability"] == "replay" and (said := [name for name in _OF_MACHINES if getattr(options, name)]):
            hint = "leave it out, or say --durability snapshot"
            raise InvalidValue(f"--{said[0]} is of microVMs: there is none on the replay road", hint=hint)
        return request
    if not options.image:
        raise InvalidValue("a program needs an image", hint="write --image IMAGE -- COMMAND; 'fcrun images' lists them")
    if options.durability == "replay":
        raise InvalidValue("--durability replay is for agents", hint="nothing is recorded of a program: leave it out")
    if options.input is not None:
        raise InvalidValue("--input is for agents", hint="give a program its input by arguments, or by -e")
    return request | {"command": words, "image": options.image, "durability": "snapshot"}


def _environment(given: list[str]) -> dict[str, str]:
    from perdure.errors import InvalidValue

    for text in given:
        if text.find("=") < 1:
            raise InvalidValue(f"-e {text!r} is not NAME=VALUE")
    return dict(text.split("=", 1) for text in given)


def _ended(server: ServerClient, info: RunInfo) -> RunInfo:
    from perdure.client.server import ENDED

    while info.state not in ENDED:
        info = server.get(info.id, wait_s=30)
    return info


def _finish(info: RunInfo, follower: Follower, *, is_command: bool) -> int:
    """Print what came out of it, or raise why nothing did."""
    import json
    import sys

    from perdure.cli.perdure import _words
    from perdure.client.server import failure, outcome
    from perdure.errors import PerdureError

    if is_command:
        if (status := _exit_status(info)) is not None:
            sys.stderr.write(f"perdure: {failure(info).message}\n")
            return status
        outcome(info)
        return 0
    try:
        result = outcome(info)
    except PerdureError as error:
        trace = _words.traceback(info.error)
        sys.stderr.write(f"{'' if follower.has_shown(trace) else trace}perdure: {error}\n")
        return 1  # whatever it was: the command was right
    print(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, indent=2))
    return 0


def _exit_status(info: RunInfo) -> int | None:
    """That of a program that ended by itself, and not well."""
    if info.state != "failed" or (info.error or {}).get("code") != "program-failed":
        return None
    status = (info.error or {}).get("details", {}).get("exit_status")
    return status if isinstance(status, int) and status else None


def _print(info: RunInfo, *, as_json: bool, text: str) -> None:
    import msgspec

    print(msgspec.json.encode(info).decode() if as_json else text)

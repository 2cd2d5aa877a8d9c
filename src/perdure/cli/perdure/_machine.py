"""What ``perdure run`` may say of a run's machine, in fcrun's words; and of when it sleeps and is captured."""

from __future__ import annotations

import argparse
from typing import Any

from perdure.cli.perdure._words import NEVER_S, seconds
from perdure.errors import InvalidValue


def add_options(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("its machine")
    machine.add_argument("--memory", default="", metavar="SIZE", help="memory of the microVM: MiB, or 512m, 2g")
    machine.add_argument("--cpus", default="", metavar="N", help="CPUs, such as 2 or 0.5")
    machine.add_argument("--disk", default="", metavar="SIZE", help="what its files may take: MiB, or 512m, 2g")
    machine.add_argument("-w", "--workdir", default="", metavar="FOLDER", help="a program's working folder")
    machine.add_argument("-u", "--user", default="", metavar="USER[:GROUP]", help="whom a program runs as")
    machine.add_argument(
        "-v", "--volume", action="append", default=[], metavar="NAME:PATH[:ro]", help="a volume at a path"
    )
    machine.add_argument("--network", action="append", default=[], metavar="NETWORK", help="to be in, or 'none'")
    machine.add_argument(
        "--egress",
        action="append",
        metavar="RULE",
        help="where it may go, and nowhere else: a CIDR, a host name, 'none'",
    )
    policy = parser.add_argument_group("when it sleeps, and is captured")
    policy.add_argument(
        "--idle-grace", metavar="TIME", help="sleep after waiting so long: 1s, 5m, 'never' (the server's: 1s)"
    )
    policy.add_argument(
        "--think-grace", metavar="TIME", help="sleep after a model thought so long: 1m, 'never' (the server's: 60s)"
    )
    policy.add_argument(
        "--checkpoint",
        metavar="WHEN",
        action="append",
        default=[],
        help="'turn' (after each turn of a model), '5turns', or a time such as 90s of running; "
        "'manual' (the server's): only when asked to",
    )


def wishes(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a request. Raises InvalidValue that names the option."""
    from perdure.cli.fcrun import _process

    vcpus = _process.vcpus(options.cpus) if options.cpus else 0
    return {
        "memory_mib": _mebibytes("--memory", options.memory),
        "disk_mib": _mebibytes("--disk", options.disk),
        "vcpus": vcpus,
        "policy": _policy(options),
        "fittings": _fittings(options),
    }


def _mebibytes(option: str, text: str) -> int:
    """MiB where it is a bare number."""
    from perdure.cli.fcrun import _process

    if not text:
        return 0
    size = int(text) if text.isdecimal() else _process.size_bytes(option, text) >> 20
    if size <= 0:
        raise InvalidValue(f"{option} {text} is no size", hint="write MiB, or 512m, 2g")
    return size


def _fittings(options: argparse.Namespace) -> dict[str, Any]:
    import msgspec

    from perdure.cli.fcrun import _mounts, _process
    from perdure.model import MountKind

    mounts = [_mounts.volume(text) for text in options.volume]
    for mount in mounts:
        if mount.kind is MountKind.FOLDER:
            hint = "name a volume ('fcrun volume create'), or put the files into the image"
            raise InvalidValue(f"--volume: {mount.source}: a run shares no folders with this machine", hint=hint)
    given = {
        "cpus": _process.time_of(options.cpus),
        "cwd": options.workdir,
        "user": options.user,
        "mounts": [msgspec.to_builtins(mount) for mount in mounts],
        "networks": options.network,
    }
    found = {name: value for name, value in given.items() if value}
    if options.egress is not None:
        found["egress"] = [rule.strip() for text in options.egress for rule in text.split(",") if rule]
    return found


def _policy(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("idle_grace", "think_grace"):
        if (text := getattr(options, name)) is not None:
            option = "--" + name.replace("_", "-")
            found[f"{name}_s"] = NEVER_S if text == "never" else seconds(text, option)
    for text in options.checkpoint:
        turns = text.removesuffix("turns").removesuffix("turn")
        if text == "manual":
            found |= {"checkpoint_turns": 0, "checkpoint_s": 0.0}
        elif turns != text:
            if turns and not (turns.isdecimal() and int(turns)):
                raise InvalidValue(f"--checkpoint {text}: that is no number of turns", hint="write turn, or 5turns")
            found["checkpoint_turns"] = int(turns or 1)
        else:
            found["checkpoint_s"] = seconds(text, "--checkpoint")
    return found

"""Options that describe a process or a sandbox, parsed as Docker parses them."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

from perdure.cli.fcrun import _mounts
from perdure.cli.fcrun._disk import add_disk_options, disk_of
from perdure.cli.fcrun._fittings import add_fitting_options, fitting_values
from perdure.cli.fcrun._health import add_end_options, end_values
from perdure.cli.fcrun._network import add_network_options, network_of
from perdure.cli.fcrun._refused import add_refused
from perdure.errors import InvalidValue
from perdure.model import DEFAULT_DISK_MIB, DEFAULT_MEMORY_MIB, DEFAULT_VCPUS, SandboxSpec, WakeReason

_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def add_process_options(parser: argparse.ArgumentParser, *, detach: bool = True) -> None:
    """What ``run`` and ``exec`` share."""
    parser.add_argument("-i", "--interactive", action="store_true", help="keep stdin open")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    if detach:
        parser.add_argument("-d", "--detach", action="store_true", help="run in the background")
    parser.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="set an environment variable"
    )
    parser.add_argument("--env-file", action="append", default=[], metavar="FILE", help="read variables from a file")
    parser.add_argument("-w", "--workdir", default="", metavar="FOLDER", help="its working folder")
    parser.add_argument("-u", "--user", default="", metavar="USER[:GROUP]", help="name or id")


def add_terminal_options(parser: argparse.ArgumentParser, *, signals: bool = True) -> None:
    """Of what joins a terminal to a process."""
    parser.add_argument("--detach-keys", default="", metavar="KEYS", help="leave it running (ctrl-p,ctrl-q)")
    if signals:
        parser.add_argument(
            "--sig-proxy",
            default="true",
            choices=("true", "false"),
            metavar="BOOL",
            help="pass signals on to it (true)",
        )


def check_keys(options: argparse.Namespace) -> None:
    """Raises InvalidValue for keys that do not read, before anything is begun."""
    if options.detach_keys:
        from perdure.cli.fcrun._terminal import keys_of

        keys_of(options.detach_keys)


def terminal_wishes(options: argparse.Namespace) -> dict[str, Any]:
    """What ``follow_main`` takes of them."""
    return {"detach_keys": options.detach_keys, "sig_proxy": options.sig_proxy == "true"}


def add_sandbox_options(parser: argparse.ArgumentParser) -> None:
    """What ``run`` and ``create`` share, but for the image."""
    parser.add_argument("--name", default="", help="a name for the sandbox")
    parser.add_argument("--rm", action="store_true", help="remove it when it exits")
    parser.add_argument(
        "--restart",
        default="",
        metavar="POLICY",
        help="start it again when it ends by itself: on-failure[:N], always, unless-stopped (no)",
    )
    parser.add_argument(
        "--init-timeout", default="", metavar="TIME", help="within which its guest must be ready: 30s, 2m (60s)"
    )
    parser.add_argument("-h", "--hostname", default="", metavar="NAME", help="its host name (default: its id)")
    parser.add_argument(
        "--suspend-after", default="", metavar="TIME", help="suspend it when it was idle for so long: 5m, 1h30m (never)"
    )
    parser.add_argument(
        "--wake-on",
        default="",
        metavar="WHAT",
        help="what resumes it by itself: exec, connect, or none (exec,connect)",
    )
    add_shape_options(parser)


def add_shape_options(parser: argparse.ArgumentParser) -> None:
    """What a template's workload has as well."""
    _mounts.add_options(parser)
    parser.add_argument("-m", "--memory", default="", metavar="SIZE", help=f"such as 1g ({DEFAULT_MEMORY_MIB}m)")
    parser.add_argument("--cpus", default="", metavar="N", help=f"CPUs, such as 2 or 0.5 ({DEFAULT_VCPUS})")
    parser.add_argument("--disk", default="", metavar="SIZE", help=f"its writable disk ({DEFAULT_DISK_MIB}m)")
    add_disk_options(parser)
    parser.add_argument("--entrypoint", default=None, metavar="PROGRAM", help="instead of the image's")
    parser.add_argument("-l", "--label", action="append", default=[], metavar="NAME=VALUE", help="mark it")
    add_network_options(parser)
    add_end_options(parser)
    add_fitting_options(parser)
    add_refused(parser)
    parser.add_argument("--label-file", action="append", default=[], metavar="FILE", help="read labels from a file")


def spec_of(options: argparse.Namespace) -> SandboxSpec:
    """Raises InvalidValue that names the option."""
    if options.rm and options.restart not in ("", "no"):
        raise InvalidValue("--rm and --restart exclude each other", hint="What is removed cannot be started again.")
    return SandboxSpec(
        image=options.image,
        command=options.command,
        entrypoint=None if options.entrypoint is None else [options.entrypoint] * bool(options.entrypoint),
        env=environment(options.env, options.env_file),
        cwd=options.workdir,
        user=options.user,
        hostname=options.hostname,
        name=options.name,
        labels=labels(options.label, options.label_file),
        tty=options.tty,
        stdin=options.interactive,
        vcpus=vcpus(options.cpus),
        cpus=time_of(options.cpus),
        memory_mib=mebibytes("--memory", options.memory, DEFAULT_MEMORY_MIB),
        disk_mib=mebibytes("--disk", options.disk, DEFAULT_DISK_MIB),
        **disk_of(options, size_bytes),
        auto_remove=options.rm,
        restart="" if options.restart == "no" else options.restart,
        **network_of(options),
        **end_values(options),
        **fitting_values(options, pairs, size_bytes),
        **_policy(options),
        mounts=_mounts.of(options),
    )


def _policy(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a spec that say when it sleeps and wakes; those that are not given are left as they are."""
    policy: dict[str, Any] = {}
    if options.suspend_after:
        from perdure.cli.fcrun._moment import duration

        policy["suspend_after_s"] = duration(options.suspend_after, "--suspend-after")
    if options.init_timeout:
        from perdure.cli.fcrun._moment import duration

        policy["init_timeout_s"] = duration(options.init_timeout, "--init-timeout")
    if options.wake_on:
        reasons = [] if options.wake_on == "none" else options.wake_on.split(",")
        if unknown := sorted(set(reasons) - set(WakeReason)):
            raise InvalidValue(f"--wake-on: {unknown[0]!r}", hint="Use exec, connect, exec,connect or none.")
        policy["wake_on"] = tuple(reason for reason in WakeReason if reason in reasons)
    return policy


def environment(given: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    """``NAME=VALUE``, or ``NAME`` alone: as it is here. Files first, later ones win, as in Docker."""
    env: dict[str, str] = {}
    for file in files:
        for place, text in _lines("--env-file", file):
            env |= _variable(text, place)
    for text in given:
        env |= _variable(text, "--env")
    return env


def _variable(text: str, where: str) -> dict[str, str]:
    name, equals, value = text.partition("=")
    if not name or any(character.isspace() for character in name):
        raise InvalidValue(f"{where}: {text!r} is no NAME=VALUE")
    if equals:
        return {name: value}
    return {name: os.environ[name]} if name in os.environ else {}


def labels(given: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    """``NAME=VALUE``, or ``NAME`` alone, which is empty. Files first, a line each, later ones win, as in Docker."""
    found: dict[str, str] = {}
    for file in files:
        for place, text in _lines("--label-file", file):
            found |= pairs(place, [text])
    return found | pairs("--label", given)


def _lines(option: str, file: str) -> Iterator[tuple[str, str]]:
    """(where, line) of those that are neither empty nor comments."""
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                text = line.strip("\r\n")
                if text.strip() and not text.lstrip().startswith("#"):
                    yield f"{file}:{number}", text.lstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{option} {file}: {error}") from error


def pairs(option: str, given: Iterable[str]) -> dict[str, str]:
    """``NAME=VALUE`` each. Raises InvalidValue that names the option."""
    pairs: dict[str, str] = {}
    for text in given:
        name, _, value = text.partition("=")
        if not name:
            raise InvalidValue(f"{option}: {text!r} is no NAME=VALUE")
        pairs[name] = value
    return pairs


def time_of(text: str) -> float:
    """A share of the last vCPU must be kept to; whole ones are limit enough."""
    cpus = float(text or 0)  # ``vcpus`` has seen that it is a number
    return cpus if cpus != math.ceil(cpus) else 0.0


def vcpus(text: str) -> int:
    try:
        count = math.ceil(float(text)) if text else DEFAULT_VCPUS
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise InvalidValue(f"--cpus: {text!r} is no number of CPUs")
    return count


def mebibytes(option: str, text: str, default: int) -> int:
    """At least one."""
    return max(1, size_bytes(option, text) >> 20) if text else default


def size_bytes(option: str, text: str) -> int:
    """512m, 1g, 1gb, or bytes. Raises InvalidValue."""
    number = text.lower().removesuffix("b") if text.lower()[-2:-1] in _UNITS else text.lower()
    unit = _UNITS.get(number[-1:], 0)
    try:
        return int(float(number[:-1]) * unit) if unit else int(number)
    except (ValueError, OverflowError):
        raise InvalidValue(f"{option}: {text!r} is no size", hint="Write 512m or 1g.") from None

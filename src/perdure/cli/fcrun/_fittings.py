"""Options for how a sandbox finds its machine, parsed as Docker parses them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from perdure.errors import InvalidValue
from perdure.model import Ulimit

FIXED: dict[str, tuple[str, object]] = {  # by a template: option -> (where its value is, what that is otherwise)
    "--read-only": ("read_only", False),
    "--add-host": ("add_host", []),
    "--ulimit": ("ulimit", []),
    "--group-add": ("group_add", []),
    "--cap-add": ("cap_add", []),
    "--cap-drop": ("cap_drop", []),
    "--security-opt": ("security_opt", []),
    "--pids-limit": ("pids_limit", 0),
    "--memory-swap": ("memory_swap", ""),
    "--shm-size": ("shm_size", ""),
    "--sysctl": ("sysctl", []),
    "--init": ("init", False),
    "--log-driver": ("log_driver", ""),
    "--log-opt": ("log_opt", []),
}
_UNLIMITED = ("-1", "unlimited")
_NO_MORE = "no-new-privileges"
_AS_IT_IS = (
    "seccomp=unconfined",
    "apparmor=unconfined",
    "label=disable",
    "systempaths=unconfined",
    f"{_NO_MORE}=false",
)


def add_fitting_options(parser: argparse.ArgumentParser) -> None:
    """What ``run``, ``create`` and ``template build`` share of these."""
    parser.add_argument("--read-only", action="store_true", help="nothing writes its root, but for volumes and tmpfs")
    parser.add_argument("--add-host", action="append", default=[], metavar="NAME:ADDRESS", help="into its /etc/hosts")
    parser.add_argument(
        "--ulimit",
        action="append",
        default=[],
        metavar="NAME=SOFT[:HARD]",
        help="what each of its processes may have: nofile=1024, nproc=64:128, core=-1",
    )
    parser.add_argument(
        "--group-add", action="append", default=[], metavar="GROUP", help="its user is in this one, too: name or id"
    )
    parser.add_argument(
        "--cap-drop", action="append", default=[], metavar="NAME", help="its root has it not: NET_RAW, or ALL"
    )
    parser.add_argument(
        "--cap-add",
        action="append",
        default=[],
        metavar="NAME",
        help="its root has it (all of them without --cap-drop)",
    )
    parser.add_argument(
        "--security-opt", action="append", default=[], metavar="OPTION", help="no-new-privileges: setuid has no effect"
    )
    parser.add_argument(
        "--pids-limit", type=int, default=0, metavar="N", help="of its processes and threads together (-1: none)"
    )
    parser.add_argument("--memory-swap", default="", metavar="SIZE", help="as --memory or -1: there is no swap")
    parser.add_argument("--shm-size", default="", metavar="SIZE", help="of /dev/shm, such as 64m (half of its memory)")
    parser.add_argument(
        "--sysctl", action="append", default=[], metavar="NAME=VALUE", help="of its own kernel, any: vm.swappiness=1"
    )
    parser.add_argument("--init", action="store_true", help="something reaps orphans (in a sandbox always so)")
    parser.add_argument("--log-driver", default="", metavar="DRIVER", help="json-file or local, which are the same")
    parser.add_argument(
        "--log-opt",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what logs --details shows: labels=a,b, env=A,B, labels-regex=…, env-regex=…",
    )


def fitting_values(
    options: argparse.Namespace,
    pairs: Callable[[str, Iterable[str]], dict[str, str]],
    size: Callable[[str, str], int],
) -> dict[str, Any]:
    """Those of a ``SandboxSpec``. Raises InvalidValue that names the option."""
    _check_swap(options, size)
    return {
        "read_only": options.read_only,
        "cap_add": [_capability(name) for name in options.cap_add],
        "cap_drop": [_capability(name) for name in options.cap_drop],
        "no_new_privileges": True in {_no_more(text) for text in options.security_opt},
        "pids_max": max(0, options.pids_limit),
        "extra_hosts": [_host(text) for text in options.add_host],
        "ulimits": [*{limit.name: limit for limit in map(_ulimit, options.ulimit)}.values()],  # the last one, as docker
        "groups": options.group_add,
        "shm_bytes": size("--shm-size", options.shm_size) if options.shm_size else 0,
        "sysctls": pairs("--sysctl", options.sysctl),
        "init": options.init,
        "log_driver": options.log_driver,
        "log_options": pairs("--log-opt", options.log_opt),
    }


def _capability(name: str) -> str:
    """As docker shows it."""
    name = name.upper()
    return name if name == "ALL" or name.startswith("CAP_") else f"CAP_{name}"


def _no_more(text: str) -> bool:
    text = text.replace(f"{_NO_MORE}:", f"{_NO_MORE}=")  # docker's older way to write it
    if text not in (_NO_MORE, f"{_NO_MORE}=true", *_AS_IT_IS):
        raise InvalidValue(
            f"--security-opt {text}: a profile of the host's kernel does not hold in a sandbox's own",
            hint="Its machine is confined from outside, always. There is no-new-privileges, and --cap-drop.",
        )
    return text not in _AS_IT_IS


def _check_swap(options: argparse.Namespace, size: Callable[[str, str], int]) -> None:
    """Of memory and swap together; no swap is what a sandbox has."""
    if options.memory_swap in ("", "-1", "0") or not options.memory:
        known = options.memory_swap in ("", "-1", "0")
    else:
        known = size("--memory-swap", options.memory_swap) == size("--memory", options.memory)
    if not known:
        raise InvalidValue(
            f"--memory-swap {options.memory_swap}: a sandbox has no swap",
            hint="Use --memory alone, or the same for both.",
        )


def _host(text: str) -> str:
    """``NAME:ADDRESS`` of that, or of ``NAME=ADDRESS``."""
    name, equals, address = text.partition("=")
    if not equals:
        name, _, address = text.partition(":")
    return f"{name}:{address}"


def _ulimit(text: str) -> Ulimit:
    name, equals, given = text.partition("=")
    soft, colon, hard = given.partition(":")
    try:
        low, high = (-1 if one in _UNLIMITED else int(one) for one in (soft, hard if colon else soft))
    except ValueError:
        equals = ""
    if not equals:
        raise InvalidValue(f"--ulimit: {text!r} is not NAME=SOFT[:HARD]", hint="Such as nofile=1024:2048; -1 is none.")
    return Ulimit(name=name, soft=low, hard=high)

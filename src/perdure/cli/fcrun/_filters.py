"""``ps --filter KEY=VALUE``: of one key any value holds (of ``label`` every one), of several keys all, as in docker."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from perdure.errors import InvalidValue, NotFound

if TYPE_CHECKING:
    from perdure.model import SandboxInfo

Test = Callable[["SandboxInfo", str], bool]


def _label(info: SandboxInfo, value: str) -> bool:
    name, equals, wanted = value.partition("=")
    return name in info.spec.labels and (not equals or info.spec.labels[name] == wanted)


def _ancestor(info: SandboxInfo, value: str) -> bool:
    digest = value.removeprefix("sha256:")
    if len(digest) >= 6 and info.image_digest.removeprefix("sha256:").startswith(digest):
        return True
    return value in (info.spec.image, info.spec.image.partition(":")[0], info.spec.image.removesuffix(":latest"))


def _exited(info: SandboxInfo, value: str) -> bool:
    if not re.fullmatch(r"\d+", value):
        raise InvalidValue(f"--filter: exited={value}", hint="It is an exit status: exited=0.")
    return info.state == "exited" and info.exit_status == int(value)


def _name(info: SandboxInfo, value: str) -> bool:
    try:
        return re.search(value, info.name) is not None or re.search(value, f"/{info.name}") is not None
    except re.error as error:
        raise InvalidValue(f"--filter: name={value}: {error}", hint="It is a regular expression.") from None


def _is_port(wanted: str, number: int, protocol: str) -> bool:
    """``80``, ``80/udp`` or ``8000-8080/tcp``."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?(?:/(tcp|udp))?", wanted)
    if match is None:
        raise InvalidValue(f"--filter: {wanted!r} is no port", hint="Write 80, 8000-8080 or 53/udp.")
    return int(match[1]) <= number <= int(match[2] or match[1]) and (match[3] or "tcp") == protocol


def _health(info: SandboxInfo, value: str) -> bool:
    if value not in HEALTH:
        raise InvalidValue(f"--filter: there is no health {value!r}", hint=f"There are: {', '.join(HEALTH)}")
    return (info.health.status if info.health is not None else "none") == value


HEALTH = ("starting", "healthy", "unhealthy", "none")
FILTERS: dict[str, Test] = {
    "id": lambda info, value: info.id.startswith(value),
    "name": _name,
    "label": _label,
    "status": lambda info, value: str(info.state) == value,
    "ancestor": _ancestor,
    "image": _ancestor,
    "exited": _exited,
    "health": _health,
    "network": lambda info, value: value in info.addresses or value in info.spec.networks,
    "publish": lambda info, value: any(_is_port(value, port.host_port, port.protocol) for port in info.ports),
    "expose": lambda info, value: any(_is_port(value, port.guest_port, port.protocol) for port in info.spec.ports),
}
ORDERED = ("before", "since")  # of another sandbox: those that were made before it, after it
ALL_OF = ("label",)
ANY_STATE = ("status", "exited", *ORDERED)  # these look at all, also without -a
STATUSES = (
    "created",
    "starting",
    "running",
    "paused",
    "suspending",
    "suspended",
    "resuming",
    "exited",
    "removing",
    "restarting",
    "dead",
)


def parse(texts: Sequence[str]) -> dict[str, list[str]]:
    """Values by key. Raises InvalidValue that names what there is."""
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in (*FILTERS, *ORDERED):
            import difflib

            known = (*FILTERS, *ORDERED)
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}=? " if near and equals else ""
            raise InvalidValue(f"--filter: {text!r}", hint=f"{hint}Filters here: {'=, '.join(known)}=")
        if key == "status" and value not in STATUSES:
            raise InvalidValue(f"--filter: there is no status {value!r}", hint=f"There are: {', '.join(STATUSES)}")
        found.setdefault(key, []).append(value)
    return found


def chosen(everyone: Sequence[SandboxInfo], wanted: dict[str, list[str]]) -> list[SandboxInfo]:
    """Those of all (newest first) for which every key holds. Raises NotFound for a ``before`` or ``since`` of none."""
    tests: list[Callable[[SandboxInfo], bool]] = []
    for key, values in wanted.items():
        if key in ORDERED:
            tests += [_ordered(everyone, key, value) for value in values]
        else:
            tests.append(_held(FILTERS[key], values, all if key in ALL_OF else any))
    return [info for info in everyone if all(test(info) for test in tests)]


def _held(test: Test, values: list[str], combined: Callable[[list[bool]], bool]) -> Callable[[SandboxInfo], bool]:
    return lambda info: combined([test(info, value) for value in values])


def _ordered(everyone: Sequence[SandboxInfo], key: str, ref: str) -> Callable[[SandboxInfo], bool]:
    found = [info for info in everyone if ref and (info.name == ref or info.id.startswith(ref))]
    if not found:
        raise NotFound(f"--filter: {key}={ref}: no such sandbox", hint="`fcrun ps -a` lists all.")
    moment = found[0].created
    if key == "before":
        return lambda info: info.created < moment
    return lambda info: info.created > moment

"""How volumes are shown and chosen: with docker's fields and filters."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any

from perdure.cli.fcrun import _format
from perdure.errors import InvalidValue
from perdure.model import VolumeInfo

Filters = list[tuple[str, str]]


def filters(given: Iterable[str], known: Sequence[str]) -> Filters:
    """Raises InvalidValue for one that is not known."""
    found = []
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise InvalidValue(f"--filter: {text!r} is no filter of volumes", hint=f"There are: {', '.join(known)}")
        found.append((name, value))
    return found


def matches(volume: VolumeInfo, wanted: Filters) -> bool:
    """Values of one filter are alternatives, but for labels; filters must all hold, as in docker."""
    labels = [value for name, value in wanted if name == "label"]
    without = [value for name, value in wanted if name == "label!"]
    if not all(_has(volume, label) for label in labels) or any(_has(volume, label) for label in without):
        return False
    for name in {name for name, _ in wanted} - {"label", "label!"}:
        values = [value for one, value in wanted if one == name]
        if name == "name" and not any(value in volume.name for value in values):
            return False
        if name == "driver" and "local" not in values:
            return False
        if name == "dangling" and all((value in ("1", "true")) == bool(volume.users) for value in values):
            return False
    return True


def _has(volume: VolumeInfo, label: str) -> bool:
    name, equals, value = label.partition("=")
    return name in volume.labels and (not equals or volume.labels[name] == value)


def row(volume: VolumeInfo) -> dict[str, str]:
    """What a line of a list can show."""
    return {
        "Driver": "local",
        "Name": volume.name,
        "Scope": "local",
        "Mountpoint": volume.path,
        "Labels": ",".join(f"{name}={value}" for name, value in sorted(volume.labels.items())),
        "Size": _format.size(volume.used_bytes),
        "Limit": _format.size(volume.size_bytes),
        "UsedBy": ",".join(user.name for user in volume.users),
        "Links": str(len(volume.users)),
        "Created": f"{_format.ago(volume.created)} ago",
    }


def facts(volume: VolumeInfo) -> dict[str, Any]:
    """As ``docker volume inspect`` has them, and what docker does not know. Its mount point is the ext4 file: nothing
    is mounted on this machine."""
    made = datetime.datetime.fromtimestamp(int(volume.created), datetime.UTC)
    return {
        "CreatedAt": made.isoformat().replace("+00:00", "Z"),
        "Driver": "local",
        "Labels": volume.labels or None,
        "Mountpoint": volume.path,
        "Name": volume.name,
        "Options": {"size": f"{volume.size_bytes >> 20}m"},
        "Scope": "local",
        "Anonymous": volume.anonymous,
        "UsageData": {"Size": volume.used_bytes, "RefCount": len(volume.users)},
        "UsedBy": [
            {"Id": user.id, "Name": user.name, "ReadOnly": user.read_only, "Attached": user.attached}
            for user in volume.users
        ],
    }

"""Options for how much a sandbox may do with its disks."""

from __future__ import annotations

import argparse
from typing import Any

from perdure.errors import InvalidValue

_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def add_disk_options(parser: argparse.ArgumentParser) -> None:
    """What ``run``, ``create`` and a template's workload share."""
    parser.add_argument(
        "--disk-bandwidth", default="", metavar="SIZE", help="bytes a second of each of its disks, in and out: 10m"
    )
    parser.add_argument("--disk-iops", default="", metavar="N", help="reads and writes a second of each of its disks")


def disk_of(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a spec. Raises InvalidValue that names the option."""
    return {"disk_bytes_per_s": _bytes(options.disk_bandwidth), "disk_ops_per_s": _operations(options.disk_iops)}


def _bytes(text: str) -> int:
    """512k, 10m, 10mb, or a number."""
    number = text.lower().removesuffix("b")
    unit = _UNITS.get(number[-1:], 1)
    try:
        size = int(float(number.rstrip("kmgt")) * unit) if text else 0
    except (ValueError, OverflowError):
        size = -1
    if text and size < 1:
        raise InvalidValue(f"--disk-bandwidth: {text!r} is no size", hint="Write 512k, 10m or 1g.")
    return size


def _operations(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise InvalidValue(f"--disk-iops: {text!r} is no number of reads and writes", hint="Write 1000.")
    return int(text or 0)

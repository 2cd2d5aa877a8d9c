"""Options for how much a sandbox may do with its disks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from perdure.errors import InvalidValue


def add_disk_options(parser: argparse.ArgumentParser) -> None:
    """What ``run``, ``create`` and a template's workload share."""
    parser.add_argument(
        "--disk-bandwidth", default="", metavar="SIZE", help="bytes a second of each of its disks, in and out: 10m"
    )
    parser.add_argument("--disk-iops", default="", metavar="N", help="reads and writes a second of each of its disks")


def disk_of(options: argparse.Namespace, size: Callable[[str, str], int]) -> dict[str, Any]:
    """The fields of a spec. Raises InvalidValue that names the option."""
    text = options.disk_bandwidth
    bandwidth = size("--disk-bandwidth", text) if text else 0
    if text and bandwidth < 1:
        raise InvalidValue(f"--disk-bandwidth: {text!r} is no limit", hint="Leave it out for none.")
    return {"disk_bytes_per_s": bandwidth, "disk_ops_per_s": _operations(options.disk_iops)}


def _operations(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise InvalidValue(f"--disk-iops: {text!r} is no number of reads and writes", hint="Write 1000.")
    return int(text or 0)

"""fcrun template build"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun._process import add_process_options, add_shape_options, spec_of

NAME = "build"
HELP = "Start a workload, wait until it is ready, and keep it asleep as a template"
GROUP = "Templates"
DESCRIPTION = (
    f"{HELP}. Of --ready-log, --ready-cmd and --ready-after all that are given must hold; without any, it is ready as "
    "soon as it was started. A template of the same name is replaced once the new one is there; sandboxes that run "
    "from it go on. When its image has changed, the next run from it builds it again. Prints its name."
)


def configure(parser: argparse.ArgumentParser) -> None:
    add_process_options(parser, detach=False)
    parser.add_argument("--name", default="", help="the template's name (default: the last part of the image's)")
    parser.add_argument("--ready-log", default="", metavar="TEXT", help="ready when it has written this")
    parser.add_argument(
        "--ready-cmd", default="", metavar="COMMAND", help="ready when this succeeds in it (split as a shell does)"
    )
    parser.add_argument("--ready-after", default="0", metavar="SECONDS", help="ready when it has run this long (0)")
    parser.add_argument("--timeout", default="300", metavar="SECONDS", help="give up when it is not ready then (300)")
    add_shape_options(parser)
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND [ARG...]")
    parser.set_defaults(
        hostname="", rm=False, restart="", suspend_after="", wake_on="", init_timeout=""
    )  # each that is run from it has its own


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node
    from perdure.errors import InvalidValue
    from perdure.model import MountKind, Recipe

    spec = spec_of(options)
    if any(mount.kind is MountKind.FOLDER for mount in spec.mounts):
        raise InvalidValue("a template takes no folder of this machine", hint="Put its files into the image.")
    recipe = Recipe(
        name=options.name or _name_of(options.image),
        spec=msgspec.structs.replace(spec, name=""),
        ready_after_s=_seconds("--ready-after", options.ready_after),
        ready_log=options.ready_log,
        ready_command=_words("--ready-cmd", options.ready_cmd),
        timeout_s=_seconds("--timeout", options.timeout),
    )
    with node() as client:
        print(client.build_template(recipe).name)
    return 0


def _name_of(image: str) -> str:
    """``python`` of ``registry:5000/library/python:3.12``."""
    return image.rpartition("/")[2].partition("@")[0].partition(":")[0]


def _seconds(option: str, text: str) -> float:
    import math

    from perdure.errors import InvalidValue

    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InvalidValue(f"{option}: {text!r} is no number of seconds")
    return seconds


def _words(option: str, text: str) -> list[str]:
    import shlex

    from perdure.errors import InvalidValue

    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidValue(f"{option}: {error}: {text!r}") from None

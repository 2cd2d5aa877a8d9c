"""fcrun run"""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _cidfile, _mounts, _registry
from perdure.cli.fcrun._fittings import FIXED as FITTINGS_FIXED
from perdure.cli.fcrun._health import FIXED as HEALTH_FIXED
from perdure.cli.fcrun._process import (
    add_process_options,
    add_sandbox_options,
    add_terminal_options,
    check_keys,
    labels,
    spec_of,
    terminal_wishes,
)

if TYPE_CHECKING:
    from perdure.client.node import NodeClient
    from perdure.model import SandboxInfo

NAME = "run"
HELP = "Create a sandbox from an image and run a command in it"
GROUP = "Common commands"
DESCRIPTION = (
    f"{HELP}; or, with --template, go on from where a workload is that was started before (fcrun template build). What "
    "that runs, and in what, was said when it was built: --template takes neither IMAGE nor COMMAND, and of the "
    "options only -d, -i, -t, --rm, --name, --label and --cidfile."
)
FIXED: dict[str, tuple[str, object]] = {  # by a template: option -> (where its value is, what that is otherwise)
    "--env": ("env", []),
    "--env-file": ("env_file", []),
    "--workdir": ("workdir", ""),
    "--user": ("user", ""),
    "--hostname": ("hostname", ""),
    "--restart": ("restart", ""),
    "--suspend-after": ("suspend_after", ""),
    "--wake-on": ("wake_on", ""),
    "--memory": ("memory", ""),
    "--cpus": ("cpus", ""),
    "--disk": ("disk", ""),
    "--disk-bandwidth": ("disk_bandwidth", ""),
    "--disk-iops": ("disk_iops", ""),
    "--entrypoint": ("entrypoint", None),
    "--publish": ("publish", []),
    "--publish-all": ("publish_all", False),
    "--init-timeout": ("init_timeout", ""),
    "--network": ("network", []),
    "--network-alias": ("network_alias", []),
    "--egress": ("egress", None),
    "--dns": ("dns", []),
    "--dns-search": ("dns_search", []),
    "--dns-option": ("dns_option", []),
    "--bandwidth": ("bandwidth", ""),
    "--packet-rate": ("packet_rate", ""),
    "--pull": ("pull", "missing"),
    "--platform": ("platform", ""),
    **HEALTH_FIXED,
    **FITTINGS_FIXED,
    "--volume": ("volume", []),
    "--mount": ("mount", []),
    "--tmpfs": ("tmpfs", []),
}


def configure(parser: argparse.ArgumentParser) -> None:
    add_process_options(parser)
    add_terminal_options(parser)
    _cidfile.add_option(parser)
    parser.add_argument("--template", default="", metavar="NAME", help="go on from a template instead of an image")
    add_sandbox_options(parser)
    _registry.add_pull_options(parser)
    parser.add_argument("image", nargs="?", default="", metavar="IMAGE")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND [ARG...]")


def run(options: argparse.Namespace) -> int:
    from perdure.errors import InvalidValue

    check_keys(options)
    if options.template:
        return _run_template(options)
    if not options.image:
        raise InvalidValue("required: IMAGE", hint="Or --template NAME. See 'fcrun run --help'.")
    return _run_image(options)


def _run_image(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun import _terminal
    from perdure.cli.fcrun._node import node

    spec = spec_of(options)
    if not options.detach:
        _terminal.check_tty(tty=spec.tty, stdin=spec.stdin)
    with node(quiet=options.quiet) as client:
        info = _registry.created(client, spec, options)
        _mounts.copy_in(client, info)
        _cidfile.write(client, info, options)
        if options.detach:
            _start(client, info)
            print(info.id)
            return 0
        session = client.attach(info.id)
        try:
            _start(client, info)
        except KeyboardInterrupt:
            client.remove(info.id, force=True)
            raise
    wishes = terminal_wishes(options)
    return _terminal.follow_main(client, info.id, session, tty=spec.tty, stdin=spec.stdin, from_start=True, **wishes)


def _start(client: NodeClient, info: SandboxInfo) -> None:
    """With --rm nothing is left where that is refused: a sandbox that never ran does not exit, so the node keeps it."""
    from perdure.errors import PerdureError

    try:
        client.start(info.id)
    except PerdureError:
        if info.spec.auto_remove:
            with contextlib.suppress(PerdureError):
                client.remove(info.id)
        raise


def _run_template(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun import _terminal
    from perdure.cli.fcrun._node import node
    from perdure.model import Fork

    _check_fixed(options)
    fork = Fork(name=options.name, labels=labels(options.label, options.label_file), auto_remove=options.rm)
    if not options.detach:
        _terminal.check_tty(tty=options.tty, stdin=options.interactive)
    with node() as client:
        _check_streams(client, options)
        info = client.run_template(options.template, fork)
        _cidfile.write(client, info, options)
        if options.detach:
            print(info.id)
            return 0
        session = client.attach(info.id, logs=True)
    tty = info.spec.tty and options.tty
    return _terminal.follow_main(
        client, info.id, session, tty=tty, stdin=options.interactive, from_start=True, **terminal_wishes(options)
    )


def _check_fixed(options: argparse.Namespace) -> None:
    """Raises InvalidValue that names what a template has fixed."""
    from perdure.errors import InvalidValue

    given = [option for option, (name, unset) in FIXED.items() if getattr(options, name) != unset]
    what = ["IMAGE" + " and COMMAND" * bool(options.command)] * bool(options.image) + given
    if what:
        raise InvalidValue(
            f"--template {options.template} excludes {', '.join(what)}: a template has its own",
            hint="Give them to `fcrun template build`, or run the image without --template.",
        )


def _check_streams(client: NodeClient, options: argparse.Namespace) -> None:
    """Raises InvalidValue for a terminal or stdin that the template's workload was not started with."""
    from perdure.errors import InvalidValue

    found = [one.recipe.spec for one in client.templates() if one.name == options.template]
    lacks = [
        (option, what)
        for spec in found  # none: the node says so when it is run
        for option, wanted, there, what in (
            ("-t", options.tty, spec.tty, "no terminal"),
            ("-i", options.interactive, spec.stdin, "no stdin"),
        )
        if wanted and not there
    ]
    if lacks:
        raise InvalidValue(
            f"the workload of template {options.template} has {' and '.join(what for _, what in lacks)}: it was built "
            f"without {' '.join(option for option, _ in lacks)}",
            hint="Build it again with `fcrun template build -it`, or leave that out.",
        )

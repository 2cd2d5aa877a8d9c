"""fcrun pull"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun import _registry

NAME = "pull"
HELP = "Get an image from a registry"
GROUP = "Common commands"
DESCRIPTION = (
    f"{HELP}. Without a host in NAME it is Docker Hub's, without a tag latest. What was fetched already, also by a "
    "pull that was interrupted, is not fetched again."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="which image, where NAME has several")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the image's full name")
    _registry.add_options(parser)
    _registry.add_trust(parser)
    parser.add_argument("name", metavar="NAME[:TAG|@DIGEST]")


def run(options: argparse.Namespace) -> int:
    import sys

    from perdure.cli.fcrun._node import node
    from perdure.formats.references import parse

    reference = parse(options.name)
    login = _registry.login_for(options.name)
    if not options.quiet and not reference.digest and ":" not in options.name.rpartition("/")[2]:
        print(f"Using default tag: {reference.tag}", flush=True)
    with node(quiet=options.quiet) as client:
        pulled = client.registries.pull(
            options.name, login=login, tls_verify=options.tls_verify, platform=options.platform
        )
    if not options.quiet:
        _registry.show_pulled(pulled, sys.stdout)
    print(f"{pulled.place}{'@' + reference.digest if reference.digest else ':' + reference.tag}")
    return 0

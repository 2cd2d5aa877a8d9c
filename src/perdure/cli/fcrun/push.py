"""fcrun push"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun import _registry

NAME = "push"
HELP = "Bring an image to the registry that its name says"
GROUP = "Common commands"
DESCRIPTION = (
    f"{HELP}: HOST/REPOSITORY[:TAG]; without a host to Docker Hub. `fcrun tag` gives it such a name. What is there "
    "already is not sent again; an image that was pulled keeps its digest."
)
_HOW = {"there": "Layer already exists", "brought": "Mounted from another repository", "sent": "Pushed"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all-tags", action="store_true", help="all images here that are called NAME")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the image's full name")
    _registry.add_options(parser)
    _registry.add_trust(parser)
    parser.add_argument("name", metavar="IMAGE", help="its name: [HOST/]REPOSITORY[:TAG]")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node
    from perdure.errors import InvalidValue
    from perdure.formats.references import parse

    reference = parse(options.name)
    has_tag = ":" in options.name.rpartition("/")[2]
    if reference.digest:
        raise InvalidValue("an image is pushed to a tag, not to a digest", hint="Write NAME:TAG.")
    if options.all_tags and has_tag:
        raise InvalidValue("--all-tags and a tag exclude each other", hint=f"fcrun push -a {reference.repository}")
    login = _registry.login_for(options.name)
    if not options.quiet:
        if not options.all_tags and not has_tag:
            print(f"Using default tag: {reference.tag}")
        print(f"The push refers to repository [{reference.place}]", flush=True)
    with node(quiet=options.quiet) as client:
        pushed = client.registries.push(
            options.name, login=login, tls_verify=options.tls_verify, all_tags=options.all_tags
        )
    for one in pushed:
        if options.quiet:
            print(f"{one.place}:{one.tag}")
            continue
        for layer in one.layers:
            print(f"{layer.digest[7:19]}: {_HOW.get(layer.how, layer.how)}")
        print(f"{one.tag}: digest: {one.digest} size: {one.size}")
    return 0

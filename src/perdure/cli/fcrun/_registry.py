"""What the commands share that reach registries: options, logins, what docker prints."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from perdure.client.node import NodeClient
    from perdure.client.registries import Login
    from perdure.model import SandboxInfo, SandboxSpec
    from perdure.reports import ImagePulled

UNVERIFIED = "--disable-content-trust"
POLICIES = ("always", "missing", "never")
_PULLED = {"there": "Already exists", "fetched": "Pull complete"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tls-verify",
        type=_truth,
        nargs="?",
        const=True,
        default=True,
        metavar="true|false",
        help="false: take any certificate of the registry, or none",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Docker's option for what it does anyway, unless it is told otherwise; known, and not shown."""
    parser.add_argument(UNVERIFIED, nargs="?", const=True, default=True, type=_unverified, help=argparse.SUPPRESS)


def add_pull_options(parser: argparse.ArgumentParser) -> None:
    """Of what makes a sandbox."""
    parser.add_argument(
        "--pull", default="missing", choices=POLICIES, help="when to get the image from its registry (missing)"
    )
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="which image to pull, where it has several")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing about a pull")
    add_options(parser)
    add_trust(parser)


def login_for(name: str) -> Login | None:
    """What is kept for the registry that an image's name says, by this user."""
    from perdure.formats.references import parse
    from perdure.host.logins import credentials

    return credentials(parse(name).account)


def created(client: NodeClient, spec: SandboxSpec, options: argparse.Namespace) -> SandboxInfo:
    """The new sandbox, whose image is pulled first as ``--pull`` says."""
    from perdure.errors import NotFound

    if options.pull == "always":
        _pull_for(client, spec.image, options)
    try:
        return client.create(spec)
    except NotFound as error:
        if options.pull != "missing" or error.details.get("image") != spec.image:
            raise
    from perdure.formats.references import parse

    name = parse(spec.image).name
    sys.stderr.write(f"Unable to find image '{name}' locally\n")
    _pull_for(client, spec.image, options)
    return client.create(spec)


def _pull_for(client: NodeClient, image: str, options: argparse.Namespace) -> None:
    """Told on standard error, as the other output is the workload's."""
    pulled = client.registries.pull(
        image, login=login_for(image), tls_verify=options.tls_verify, platform=options.platform
    )
    if not options.quiet:
        show_pulled(pulled, sys.stderr)


def show_pulled(pulled: ImagePulled, stream: TextIO) -> None:
    """As docker does, but for what happened on the way."""
    repository, tag = _split(pulled.name)
    print(f"{tag}: Pulling from {pulled.place.partition('/')[2]}", file=stream)
    for layer in pulled.layers if pulled.is_new else ():
        print(f"{layer.digest[7:19]}: {_PULLED.get(layer.how, layer.how)}", file=stream)
    print(f"Digest: {pulled.digest}", file=stream)
    what = "Downloaded newer image" if pulled.is_new else "Image is up to date"
    print(f"Status: {what} for {repository}{'@' if tag.startswith('sha256:') else ':'}{tag}", file=stream)


def _split(name: str) -> tuple[str, str]:
    """(repository, tag or digest)"""
    if "@" in name:
        repository, _, digest = name.partition("@")
        return repository, digest
    repository, _, tag = name.rpartition(":")
    return repository, tag


def _truth(text: str) -> bool:
    if text.lower() in ("true", "1", "t"):
        return True
    if text.lower() in ("false", "0", "f"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _unverified(text: str) -> bool:
    if not _truth(text):
        from perdure.errors import InvalidValue

        raise InvalidValue(
            f"{UNVERIFIED}={text}: signatures of Docker Content Trust are not verified here",
            hint="Name an image by its digest: NAME@sha256:…; what comes is held to that.",
        )
    return True

"""fcrun build"""

from __future__ import annotations

import argparse
import sys

NAME = "build"
HELP = "Build an image from a Dockerfile"
GROUP = "Images"
DESCRIPTION = (
    f"{HELP}, through buildah, which must be installed. CONTEXT is a folder, less what its .dockerignore names, or - "
    "for a tar or a Dockerfile on stdin. FROM finds images of this node first, then asks registries. RUN steps are "
    "processes of the node's machine in a chroot, not in a microVM: build only what you would run there yourself. "
    "Nothing is kept of a build but its image."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-t", "--tag", action="append", default=[], metavar="NAME[:TAG]", help="name it; repeatable")
    parser.add_argument("-f", "--file", default="", metavar="FILE", help="instead of CONTEXT/Dockerfile; - for stdin")
    parser.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME[=VALUE]", help="set an ARG; repeatable"
    )
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE", help="mark it; repeatable")
    parser.add_argument("--target", default="", metavar="STAGE", help="build up to this stage")
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="only this machine's own can be built")
    parser.add_argument("--pull", action="store_true", help="ask registries even for images that are here")
    parser.add_argument("--no-cache", action="store_true", help="as it is: no step of an earlier build is used")
    parser.add_argument("--iidfile", default="", metavar="FILE", help="write the image's id to this file")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the id")
    parser.add_argument("context", metavar="CONTEXT")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun import _context
    from perdure.cli.fcrun._node import node
    from perdure.cli.fcrun._process import environment, pairs
    from perdure.errors import InvalidValue, PerdureError
    from perdure.model import DockerfileBuild

    context = _context.of(options.context, options.file)
    wish = DockerfileBuild(
        names=options.tag,
        dockerfile=context.dockerfile,
        arguments=environment(options.build_arg, []),
        labels=pairs("--label", options.label),
        target=options.target,
        platform=options.platform,
        pull=options.pull,
    )
    said: list[str] = []

    def tell(text: str) -> None:
        said.append(text)
        if not options.quiet:
            sys.stderr.write(text)
            sys.stderr.flush()

    with node() as client:
        try:
            images = client.library.build(wish, context.chunks, tell)
        except PerdureError:
            if options.quiet:
                sys.stderr.writelines(said)
            raise
    if options.iidfile:
        try:
            with open(options.iidfile, "w", encoding="ascii") as file:
                file.write(images[0].digest)
        except OSError as error:
            raise InvalidValue(f"--iidfile {options.iidfile}: {error.strerror}") from error
    if options.quiet:
        print(images[0].digest)
        return 0
    print(f"Successfully built {images[0].digest.removeprefix('sha256:')[:12]}")
    for image in images:
        if image.name:
            print(f"Successfully tagged {image.name}")
    return 0

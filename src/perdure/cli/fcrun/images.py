"""fcrun images"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _format

if TYPE_CHECKING:
    from perdure.model import ImageInfo

NAME = "images"
HELP = "List images"
GROUP = "Common commands"

COLUMNS = {"Repository": "REPOSITORY", "Tag": "TAG", "ID": "IMAGE ID", "CreatedSince": "CREATED", "Size": "SIZE"}
FILTERS = ("reference", "before", "since", "until", "dangling", "label")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="as it is: there are no hidden images")
    parser.add_argument("--digests", action="store_true", help="also what a registry calls them")
    _format.add_filter(
        parser,
        "reference=PATTERN, before=IMAGE, since=IMAGE, until=WHEN, dangling=true or false, label=NAME[=VALUE]; of "
        "references any, of the others all",
    )
    _format.add_options(parser, quiet="only the ids")
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="only images of this name, or pattern")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node

    filters = _filters(options.filter)
    with node() as client:
        found = _chosen(client.images(), filters)
    if options.name:
        found = [image for image in found if _matches(image, options.name)]
    rows = [_row(image, short=not options.no_trunc) for image in found]
    if options.quiet:
        for row in rows:
            print(row["ID"])
        return 0
    columns = dict(COLUMNS)
    if options.digests:
        columns = {"Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST"} | columns
    values = [row | msgspec.to_builtins(image) for row, image in zip(rows, found, strict=True)]
    _format.show(rows, values, columns, options.format)
    return 0


def _row(image: ImageInfo, *, short: bool) -> dict[str, str]:
    from perdure.cli.fcrun._views import stamp

    name, by_digest, digest = image.name.partition("@")  # pulled by its digest: it has no tag
    repository, _, tag = (name, "", "") if by_digest else image.name.rpartition(":")
    return {
        "Repository": repository or "<none>",
        "Tag": tag or "<none>",
        "Digest": digest or image.pulled or "<none>",
        "ID": _format.digest(image.digest, short=short),
        "CreatedSince": f"{_format.ago(image.created)} ago",
        "CreatedAt": stamp(image.created),
        "Size": _format.size(image.size_bytes),
    }


def _filters(texts: list[str]) -> dict[str, list[str]]:
    from perdure.errors import InvalidValue

    found: dict[str, list[str]] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not value or key not in FILTERS:
            raise InvalidValue(f"--filter: {text!r}", hint=f"Use {', '.join(f'{one}=' for one in FILTERS)}.")
        if key == "dangling" and value.lower() not in ("true", "false", "1", "0"):
            raise InvalidValue(f"--filter: {text!r}", hint="dangling is true or false.")
        found.setdefault(key, []).append(value)
    return found


def _chosen(images: list[ImageInfo], filters: dict[str, list[str]]) -> list[ImageInfo]:
    """Those that pass."""
    from perdure.cli.fcrun._moment import moment

    before = [_named(images, name).created for name in filters.get("before", [])]
    before += [moment(text, "--filter until") for text in filters.get("until", [])]
    since = [_named(images, name).created for name in filters.get("since", [])]
    dangling = {text.lower() in ("true", "1") for text in filters.get("dangling", [])}
    references = filters.get("reference", [])
    return [
        image
        for image in images
        if all(image.created < limit for limit in before)
        and all(image.created > limit for limit in since)
        and all(_has(image, label) for label in filters.get("label", []))
        and all(wanted == (not image.name) for wanted in dangling)
        and (not references or any(_matches(image, pattern) for pattern in references))
    ]


def _named(images: list[ImageInfo], wanted: str) -> ImageInfo:
    from perdure.errors import NotFound

    for image in images:
        digest = image.digest.removeprefix("sha256:")
        if wanted in (image.name, image.name.removesuffix(":latest")) or digest.startswith(
            wanted.removeprefix("sha256:")
        ):
            return image
    raise NotFound(f"--filter: no image {wanted!r} on this node", hint="See fcrun images.")


def _matches(image: ImageInfo, pattern: str) -> bool:
    """By its whole name or by that without its tag; ``*`` stops at a slash, as docker's does."""
    name = image.name.partition("@")[0]
    return bool(name) and any(_fits(each, pattern) for each in (image.name, name, name.rpartition(":")[0]))


def _fits(name: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _has(image: ImageInfo, label: str) -> bool:
    name, equals, value = label.partition("=")
    return name in image.labels and (not equals or image.labels[name] == value)

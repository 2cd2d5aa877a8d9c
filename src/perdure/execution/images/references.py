"""Names of images, as docker has them: ``[HOST[:PORT]/]PATH[:TAG]``, the tag ``latest`` where none is given."""

from __future__ import annotations

import re

from perdure.errors import InvalidValue

# The grammar of distribution/reference, without digests.
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?/)?"
_NAME = re.compile(rf"(?P<path>{_HOST}{_PART}(?:/{_PART})*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}))?")
_DOCKER_HUB = ("docker.io/library/", "docker.io/", "index.docker.io/library/")


def full_name(name: str) -> str:
    """``NAME:TAG`` of a name that may lack its tag; Docker Hub's prefix goes, as docker shows it.

    Raises InvalidValue for what is no name.
    """
    for prefix in _DOCKER_HUB:
        name = name.removeprefix(prefix)
    match = _NAME.fullmatch(name)
    if match is None or len(name) > 255:
        raise InvalidValue(
            f"{name!r} is no name for an image", hint="Use lower-case letters, digits and . _ - /: like tools/agent:v1"
        )
    return f"{match['path']}:{match['tag'] or 'latest'}"

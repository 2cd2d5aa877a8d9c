"""Names of images, as docker has them: ``[HOST[:PORT]/]PATH[:TAG]``, the tag ``latest`` where none is given.

Where an image lives is said by its name: the first part is a host if it has a dot, a colon or a capital letter in it,
or is ``localhost``; without a host Docker Hub is meant, and below its ``library/`` where the path has one part only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from perdure.errors import InvalidValue

HUB = "docker.io"
HUB_API = "registry-1.docker.io"  # where Docker Hub answers
HUB_ACCOUNT = "https://index.docker.io/v1/"  # what its logins are kept under (docker's config.json)
_HUB_NAMES = (HUB, "index.docker.io", HUB_API)
# The grammar of distribution/reference, without digests.
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?/)?"
_NAME = re.compile(rf"(?P<path>{_HOST}{_PART}(?:/{_PART})*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}))?")
_DOCKER_HUB = ("docker.io/library/", "docker.io/", "index.docker.io/library/")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FORMS = "Use lower-case letters, digits and . _ - /: like tools/agent:v1"


def full_name(name: str) -> str:
    """``NAME:TAG`` of a name that may lack its tag; Docker Hub's prefix goes, as docker shows it.

    Raises InvalidValue for what is no name.
    """
    for prefix in _DOCKER_HUB:
        name = name.removeprefix(prefix)
    match = _NAME.fullmatch(name)
    if match is None or len(name) > 255:
        raise InvalidValue(f"{name!r} is no name for an image", hint=_FORMS)
    return f"{match['path']}:{match['tag'] or 'latest'}"


@dataclass(frozen=True)
class Reference:
    """Where a registry has an image: ``HOST/PATH``, and a tag or, instead of it, a digest."""

    host: str
    path: str
    tag: str
    digest: str = ""

    @property
    def repository(self) -> str:
        """As docker shows it: without what goes without saying."""
        return self.path.removeprefix("library/") if self.host == HUB else f"{self.host}/{self.path}"

    @property
    def name(self) -> str:
        """What the image is called here: ``NAME:TAG`` or ``NAME@sha256:HEX``."""
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"

    @property
    def place(self) -> str:
        """The repository, with all that goes without saying."""
        return f"{self.host}/{self.path}"

    @property
    def account(self) -> str:
        """What a login is kept under."""
        return HUB_ACCOUNT if self.host == HUB else self.host


def parse(name: str) -> Reference:
    """The reference ``NAME[:TAG][@DIGEST]``; with a digest the tag says nothing. Raises InvalidValue."""
    rest, at, digest = name.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise InvalidValue(f"{name!r}: {digest!r} is no digest", hint="Write NAME@sha256: and 64 hexadecimal digits.")
    path, _, tag = full_name(rest).rpartition(":")
    first, slash, below = path.partition("/")
    if slash and (first == "localhost" or any(character in ".:" or character.isupper() for character in first)):
        host, path = (HUB if first in _HUB_NAMES else first), below
    else:
        host = HUB
    if host == HUB and "/" not in path:
        path = f"library/{path}"
    return Reference(host, path, "" if digest else tag, digest)


def known_name(name: str) -> str:
    """What an image that is asked for by ``NAME[:TAG]`` or ``NAME@DIGEST`` is called here. Raises InvalidValue."""
    return parse(name).name if "@" in name else full_name(name)

"""How commands name a store beyond this machine, and a snapshot in it."""

from __future__ import annotations

import re

FORMS = "/PATH, s3://BUCKET/PREFIX, oci://HOST/REPOSITORY or oci+http://HOST/REPOSITORY"
CREDENTIALS = (
    "The node goes there, with the credentials of its own environment, as it was when the node was started: "
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL … for a bucket, DOCKER_CONFIG (what "
    "`docker login` wrote) for a registry."
)
_TAGGED = re.compile(r"(?P<url>.*[^/:]):(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})")
_DIGEST = re.compile(r"(?P<url>.+)@(?P<digest>sha256:[0-9a-f]{64})")


def split(place: str, tag: str = "") -> tuple[str, str]:
    """(URL of the store, tag or digest) of URL:TAG or URL@DIGEST; with ``tag`` the place is a URL and nothing else.

    As in an image's name, a colon begins a tag when no slash follows it.
    """
    if tag:
        return place, tag
    if match := _DIGEST.fullmatch(place):
        return match["url"], match["digest"]
    match = _TAGGED.fullmatch(place)
    if match and "/" in match["url"].partition("://")[2] + match["url"][:1]:
        return match["url"], match["tag"]
    return place, ""

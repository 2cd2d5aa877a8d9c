"""The names of images: which are none, and where the others lead."""

from __future__ import annotations

import pytest

from perdure.errors import InvalidValue
from perdure.formats.references import parse


@pytest.mark.parametrize(
    "name",
    [
        "UPPER", "a/../b", "../a", "localhost:5000/a/../../etc", "a:b:c", "", "localhost:5000/", "a@sha256:12",
        "a@md5:d41d8cd98f00b204e9800998ecf8427e", "a b", "a\nb", "http://localhost:5000/a", "-a", "a/" + "b" * 300,
    ],
)  # fmt: skip
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InvalidValue, match=r"is no name|is no digest"):
        parse(name)


@pytest.mark.parametrize(
    ("name", "host", "path", "known"),
    [
        ("alpine", "docker.io", "library/alpine", "alpine:latest"),
        ("docker.io/alpine:3", "docker.io", "library/alpine", "alpine:3"),
        ("index.docker.io/me/app", "docker.io", "me/app", "me/app:latest"),
        ("me/app:x", "docker.io", "me/app", "me/app:x"),
        ("localhost/app", "localhost", "app", "localhost/app:latest"),
        ("ghcr.io/me/app:x", "ghcr.io", "me/app", "ghcr.io/me/app:x"),
        ("registry:5000/app", "registry:5000", "app", "registry:5000/app:latest"),
        (f"a:x@sha256:{'0' * 64}", "docker.io", "library/a", f"a@sha256:{'0' * 64}"),
    ],
)
def test_where_names_lead(name: str, host: str, path: str, known: str) -> None:
    reference = parse(name)
    assert (reference.host, reference.path, reference.name) == (host, path, known)

"""Pulls into a library of the test's own, from a registry that answers as the test wants."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import PerdureError
from perdure.execution.images import pulling
from perdure.execution.images.library import ImageLibrary
from perdure.execution.registry.reaching import opened
from perdure.execution.registry.retry import Patience
from perdure.formats.references import parse
from perdure.host.progress import silent
from perdure.testing.images import Answer, FakeRegistry, HandMade, Request


class Pulls:
    """A library, and pulls into it that try twice and never wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.library = ImageLibrary(folder)
        self.pauses: list[float] = []
        self.patience = Patience(tries=2, request_timeout_s=2.0, pause=self.pauses.append)

    def pull(self, name: str, *, verify: bool = True, login: tuple[str, str] | None = None) -> str:
        """The digest that the registry has under that name."""
        reference = parse(name)
        with closing(
            opened(
                reference.host, reference.path, url=reference.place, verify=verify, login=login, patience=self.patience
            )
        ) as repository:
            return pulling.pull(self.library, repository, reference, progress=silent).digest

    def refused(self, name: str, kind: type[PerdureError], *words: str, **options: Any) -> str:
        """What is said, where the pull must fail; no image is there then, and no part of one counts as one."""
        with pytest.raises(kind) as caught:
            self.pull(name, **options)
        said = str(caught.value)
        for word in words:
            assert word in said, said
        assert self.library.list() == []
        blobs = self.folder / "blobs"
        assert not blobs.exists() or list(blobs.iterdir()) == []
        return said


def layers(made: HandMade, fake: FakeRegistry) -> list[str]:
    """The digests of the layers of ``app:v1``."""
    manifest = json.loads(made.blobs[fake.tags["v1"]["digest"]])
    return [layer["digest"] for layer in manifest["layers"]]


def replace(fake: FakeRegistry, part: str, answer: Answer, *, times: int = -1) -> None:
    """What is asked for with this in its path is answered so."""
    left = [times]

    def answered(request: Request) -> Answer | None:
        if part not in request.path or left[0] == 0:
            return None
        left[0] -= 1
        return answer

    fake.answer = answered

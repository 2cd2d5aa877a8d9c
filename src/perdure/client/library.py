"""What can be asked about a node's images beyond bringing and taking them (``NodeClient.library``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from perdure.client.transport import Progress, Transport
from perdure.errors import Unavailable, from_json
from perdure.model import DockerfileBuild, ImageInfo, ImageStep, Pruned


class LibraryClient:
    """Every method raises the errors of ``perdure.errors``, as the node raised them. ``name``: a name or a digest."""

    def __init__(self, http: Transport, progress: Progress | None) -> None:
        self._http, self._progress = http, progress

    def save(self, names: Iterable[str]) -> Iterator[bytes]:
        """One archive of these images, as ``docker save`` writes it. Unavailable: it broke off."""
        with self._http.open("GET", "/v1/images/save", query={"name": list(names)}) as answer:
            yield from answer.chunks()

    def history(self, name: str) -> list[ImageStep]:
        """How it was made, the newest step first."""
        return msgspec.convert(self._http.call("GET", "/v1/images/history", query={"name": name}), list[ImageStep])

    def inspect(self, name: str) -> dict[str, Any]:
        """All that is known of it, with docker's field names."""
        found: dict[str, Any] = self._http.call("GET", "/v1/images/inspect", query={"name": name})
        return found

    def build(self, wish: DockerfileBuild, context: Iterable[bytes], output: Callable[[str], None]) -> list[ImageInfo]:
        """The image of a Dockerfile, once for each of its names. ``context``: a tar; ``output`` gets what the build
        says, as it says it."""
        query = {"wish": msgspec.json.encode(wish).decode()}
        headers = {"content-type": "application/x-tar"}
        with self._http.open("POST", "/v1/images/dockerfile", query=query, body=context, headers=headers) as answer:
            for line in answer.lines():
                if "output" in line:
                    output(line["output"])
                elif "error" in line:
                    raise from_json(line["error"])
                else:
                    return msgspec.convert(line["ok"], list[ImageInfo])
        raise Unavailable("the node ended the build early", hint="Its log says why.")

    def prune(
        self,
        *,
        every: bool = False,
        until: float | None = None,
        labels: Iterable[str] = (),
        without_labels: Iterable[str] = (),
    ) -> Pruned:
        """Remove images without a name that no sandbox uses; every: those with one too. until: only what came before
        (seconds since the epoch). labels: NAME or NAME=VALUE, only what has all (none) of them."""
        wish = {"every": every, "until": until, "labels": list(labels), "without_labels": list(without_labels)}
        return msgspec.convert(self._http.call("POST", "/v1/images/prune", json_body=wish), Pruned)

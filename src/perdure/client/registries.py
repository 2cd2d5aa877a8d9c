"""The client of a node's way to registries: images there and back (``NodeClient.registries``)."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.client.transport import Progress, Transport
from perdure.reports import ImagePulled, ImagePushed

Login = tuple[str, str]


class RegistryClient:
    """``login``: user and password; None: what the node's own user has kept for the registry.

    ``tls_verify`` False: its certificate may be any, and it may have none. Names are docker's: NAME[:TAG][@DIGEST].
    """

    def __init__(self, http: Transport, progress: Progress | None) -> None:
        self._http = http
        self._progress = progress

    def pull(
        self, name: str, *, login: Login | None = None, tls_verify: bool = True, platform: str = ""
    ) -> ImagePulled:
        """Bring an image to the node. What is there already is not fetched again."""
        wish = {"name": name, "login": login, "tls_verify": tls_verify, "platform": platform}
        return msgspec.convert(self._long("/v1/images/pull", wish), ImagePulled)

    def push(
        self, name: str, *, login: Login | None = None, tls_verify: bool = True, all_tags: bool = False
    ) -> list[ImagePushed]:
        """Bring an image of the node to the registry that its name says. all_tags: all images of that repository."""
        wish = {"name": name, "login": login, "tls_verify": tls_verify, "all_tags": all_tags}
        return msgspec.convert(self._long("/v1/images/push", wish), list[ImagePushed])

    def sweep(self) -> None:
        """Give up what came of images whose pull broke: the next one of them begins anew."""
        self._http.call("POST", "/v1/images/sweep")

    def check_login(self, host: str, login: Login, *, tls_verify: bool = True) -> None:
        """Raises NoRights where the registry at ``host`` does not take this user and password. Nothing is kept."""
        self._long("/v1/registries/login", {"host": host, "login": login, "tls_verify": tls_verify})

    def _long(self, path: str, wish: dict[str, Any]) -> Any:
        return self._http.call("POST", path, json_body=wish, progress=self._progress)

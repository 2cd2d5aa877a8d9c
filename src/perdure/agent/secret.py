"""``ctx.secret``: a host that a program reaches with a secret which it never sees."""

from __future__ import annotations

from perdure.errors import InvalidValue

PATH = "/perdure/secret/"


class Secret:
    """``url``: what is asked below it goes to the secret's host, with the secret put in on the way, outside of here.

    Any HTTP client will do: ``urllib.request.urlopen(ctx.secret("github").url + "/user")``.
    """

    __slots__ = ("name", "url")

    def __init__(self, name: str, door: str) -> None:
        """door: the URL of the way out, without a path."""
        if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
            raise InvalidValue(f"ctx.secret: {name!r} is no name of a secret", hint='for example "github"')
        self.name = name
        self.url = f"{door}{PATH}{name}"

    def __repr__(self) -> str:
        return f"Secret({self.name!r})"

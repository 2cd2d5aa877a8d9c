"""The base URLs of settings: what is asked is put at their end. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit

from perdure.errors import InvalidValue


def checked(text: str, where: str) -> str:
    """InvalidValue: it is none, or has what nothing can be put behind, or a key in it, which messages would show."""
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of its port, or an address in brackets
        is_url = False
    if not is_url or not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidValue(f"{where}: {text!r} is not a URL", hint='for example "https://api.example.com/v1"')
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InvalidValue(f"{where}: a base URL has neither a user nor '?' or '#'", hint="a key has a line of its own")
    return text

"""What a Python file says that it needs: the block ``# /// script`` of PEP 723 (packaging.python.org, "Inline script
metadata"). Pure.

    # /// script
    # requires-python = ">=3.11"
    # dependencies = ["httpx>=0.27", "rich"]
    # ///
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from perdure.errors import AgentInvalid

_BLOCK = re.compile(r"(?m)^# /// (?P<kind>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_NAME = r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
# As PEP 508 has them, as far as it matters here: that none is an option or a folder, and which are URLs.
_REQUIREMENT = re.compile(_NAME + r"\s*(?P<extras>\[[^\]]*\])?\s*(?:@\s*(?P<url>\S+)|[(<>=!~][^;@]*)?\s*(?P<rest>;.*)?")
_WHEEL = re.compile(r"https?://[^?#]+\.whl(?:[?#].*)?")
_SDK = "perdure"
_HINT = 'It is a list of texts, as in dependencies = ["httpx>=0.27"].'


@dataclass(frozen=True)
class Needs:
    """``packages``: as pip takes them, without Perdure itself, which is the server's. ``python``: as in
    ``requires-python``."""

    packages: tuple[str, ...] = ()
    python: str = ""


def read(source: str, file: str) -> Needs:
    """Of a file without a block: nothing. ``AgentInvalid`` says what is wrong with it."""
    if "# /// script" not in source:
        return Needs()
    found = [match for match in _BLOCK.finditer(source.replace("\r\n", "\n")) if match["kind"] == "script"]
    if not found:
        return Needs()
    if len(found) > 1:
        raise AgentInvalid(f"{file} has {len(found)} blocks of # /// script", hint="Make one of them.")
    import tomllib

    lines = found[0]["content"].splitlines()
    try:
        told = tomllib.loads("\n".join(line[2:] for line in lines))
    except tomllib.TOMLDecodeError as error:
        raise AgentInvalid(f"{file}: its block # /// script is not TOML: {error}", hint="Correct it.") from error
    packages, python = told.get("dependencies", []), told.get("requires-python", "")
    if not isinstance(packages, list) or not isinstance(python, str):
        raise AgentInvalid(f"{file}: its block # /// script is wrong: {told}", hint=_HINT)
    return Needs(tuple(text for text in packages if not _is_sdk(text, file)), python)


def _is_sdk(text: object, file: str) -> bool:
    """Whether a requirement is the SDK. ``AgentInvalid``: it is no requirement."""
    match = _REQUIREMENT.fullmatch(text.strip()) if isinstance(text, str) and text.isprintable() else None
    if match is None:
        raise AgentInvalid(f"{file}: {text!r} is not a requirement", hint=_HINT)
    if match["url"] and not _WHEEL.fullmatch(match["url"]):
        raise AgentInvalid(f"{file}: {text!r}: that is no wheel", hint="A URL is https://…/NAME.whl: nothing is built.")
    if match["name"].lower() != _SDK:
        return False
    if match["extras"]:
        message = f"{file}: {text!r}: Perdure itself is the server's, so it brings no packages along"
        raise AgentInvalid(message, hint='Name the framework instead, as in "pydantic-ai-slim".')
    return True

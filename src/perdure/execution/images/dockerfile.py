"""What a Dockerfile builds upon, found without running it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?[-+]([^}]*))?\}|(\w+))")
_ESCAPE = re.compile(r"#\s*escape\s*=\s*`", re.IGNORECASE)


def images(text: str, arguments: Mapping[str, str]) -> list[str]:
    """Names of images that it may take from elsewhere: of FROM, ``COPY --from`` and ``RUN --mount=from=``.

    ``arguments``: those of ``--build-arg``. Names of its own stages, and ``scratch``, are no images.
    """
    known: dict[str, str] = {}
    stages: set[str] = {"scratch"}
    found: dict[str, None] = {}
    is_global = True  # an ARG before the first FROM is all that a FROM may use
    for word, rest in _instructions(text):
        if word == "ARG" and is_global:
            for setting in rest.split():
                name, _, default = setting.partition("=")
                known[name] = arguments.get(name, _unquoted(default))
        elif word == "FROM":
            is_global = False
            words = [part for part in rest.split() if not part.startswith("--")]
            if words:
                name = _filled(words[0], known)
                if name and name.lower() not in stages:
                    found[name] = None
            if len(words) >= 3 and words[1].upper() == "AS":
                stages.add(words[2].lower())
        else:
            for name in re.findall(r"(?:--|[,=])from=([^\s,]+)", rest):
                if not name.isdigit() and name.lower() not in stages:
                    found[name] = None
    return list(found)


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    escape = "`" if any(_ESCAPE.match(line) for line in text.splitlines()[:3]) else "\\"
    whole = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#") or not stripped:
            continue
        if stripped.endswith(escape):
            whole += stripped[:-1] + " "
            continue
        word, _, rest = (whole + stripped).partition(" ")
        whole = ""
        yield word.upper(), rest.strip()


def _filled(word: str, known: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        found = known.get(match[1] or match[3], "")
        if match[2] is None:
            return found
        return (match[2] if found else "") if "+" in match[0][: match[0].index(match[2])] else found or match[2]

    return _unquoted(_VARIABLE.sub(value, word))


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text

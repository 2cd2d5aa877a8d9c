"""What a person may set of a server: ``HOME/settings.toml``, its table ``[runs]``.

``idle_grace_s``, ``think_grace_s``, ``checkpoint_turns``, ``checkpoint_s``, ``snapshots_kept``: of runs that say
nothing else (``runs.policy``).
"""

from __future__ import annotations

import tomllib

import msgspec

from perdure.errors import InvalidValue
from perdure.host.paths import Home
from perdure.runs.driver import Settings
from perdure.runs.policy import Policy


def load(home: Home) -> Settings:
    """Raises InvalidValue that names the wrong line."""
    place = home.root / "settings.toml"
    try:
        document = tomllib.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        document = {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{place} is not TOML: {error}", hint="correct it, or remove it") from error
    table, known = document.get("runs", {}), Policy.__struct_fields__
    if not isinstance(table, dict):
        raise InvalidValue(f"{place}: runs is not a table", hint="write a [runs] section")
    if unknown := sorted(set(table) - set(known)):
        raise InvalidValue(f"{place}: [runs]: unknown setting {unknown[0]!r}", hint=f"known are {', '.join(known)}")
    try:
        policy = msgspec.convert(table, Policy)
        policy.check()
    except (msgspec.ValidationError, InvalidValue) as error:
        raise InvalidValue(f"{place}: [runs]: {error}", hint="For example idle_grace_s = 5.0") from error
    return Settings(**{name: value for name, value in policy.to_json().items() if value is not None})

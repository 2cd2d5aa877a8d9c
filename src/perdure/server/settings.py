"""What a person may set of a server: ``HOME/settings.toml``, its table ``[runs]``.

``idle_grace_s``, ``think_grace_s``, ``checkpoint_turns``, ``checkpoint_s``, ``snapshots_kept``: of runs that say
nothing else (``runs.policy``).
"""

from __future__ import annotations

import msgspec

from perdure.errors import InvalidValue
from perdure.host.paths import Home
from perdure.host.settings import Table, place
from perdure.runs.driver import Settings
from perdure.runs.policy import Policy


def load(home: Home) -> Settings:
    """Raises InvalidValue that names the wrong line."""
    table = Table(home, "runs", dict.fromkeys(Policy.__struct_fields__, ""), {})
    try:
        policy = msgspec.convert(table.values, Policy)
        policy.check()
    except (msgspec.ValidationError, InvalidValue) as error:
        raise InvalidValue(f"{place(home)}: [runs]: {error}", hint="For example idle_grace_s = 5.0") from error
    return Settings(**{name: value for name, value in policy.to_json().items() if value is not None})

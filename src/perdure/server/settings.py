"""What a person may set of a server: ``HOME/settings.toml``, its tables ``[runs]`` and ``[retention]``.

``idle_grace_s``, ``think_grace_s``, ``checkpoint_turns``, ``checkpoint_s``, ``snapshots_kept``: of runs that say
nothing else (``runs.policy``).

[retention]
keep_days = 30         # the logs of runs that ended longer ago are dropped (``runs.retention``); 0 (usual): never
"""

from __future__ import annotations

import msgspec

from perdure.errors import InvalidValue
from perdure.host.paths import Home
from perdure.host.settings import Table, place
from perdure.runs.driver import Settings
from perdure.runs.policy import Policy
from perdure.server.budgets import load as load_budgets

DAY_S = 86400.0
LONGEST_DAYS = 36600.0


def keep_s(home: Home) -> float | None:
    """How long the logs of runs that have ended are kept; None: for ever. InvalidValue names the wrong line."""
    days = Table(home, "retention", {"keep_days": ""}, {}).number("keep_days", 0.0, 0.0, LONGEST_DAYS)
    return days * DAY_S or None


def load(home: Home) -> Settings:
    """Raises InvalidValue that names the wrong line."""
    table = Table(home, "runs", dict.fromkeys(Policy.__struct_fields__, ""), {})
    try:
        policy = msgspec.convert(table.values, Policy)
        policy.check()
    except (msgspec.ValidationError, InvalidValue) as error:
        raise InvalidValue(f"{place(home)}: [runs]: {error}", hint="For example idle_grace_s = 5.0") from error
    said = {name: value for name, value in policy.to_json().items() if value is not None}
    return Settings(**said, budgets=load_budgets(home))

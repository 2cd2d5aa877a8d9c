"""What runs may spend on models that say nothing else, and together: ``HOME/settings.toml``, its tables ``[budgets]``::

[budgets]
tokens = 2_000_000             # 0 (usual): as many as they like
calls = 500
usd = 5.0

[budgets."research*"]          # of agents whose name fits: a function's, or FILE.py:FUNCTION
usd = 20.0                     # the rest as above

[budgets."research*".all]      # of all runs of these agents, together
per = "day"                    # of UTC; or "month"; or "" (usual): for ever
usd = 100.0
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.errors import InvalidValue
from perdure.host.paths import Home
from perdure.host.settings import document, place
from perdure.model import Budget, JointBudget
from perdure.runs.budgets import Budgets

ALL = "all"
NAME_MAX = 200


def load(home: Home) -> Budgets:
    """InvalidValue names the wrong line."""
    title, found = f"{place(home)}: [budgets", document(home).get("budgets", {})
    if not isinstance(found, dict):
        raise InvalidValue(f"{place(home)}: budgets is not a table", hint="write a [budgets] section")
    tables = {name: table for name, table in found.items() if isinstance(table, dict)}
    joint = [_joint(name, table[ALL], f'{title}."{name}".{ALL}]') for name, table in tables.items() if ALL in table]
    usual = {name: value for name, value in found.items() if name not in tables}
    by_agent = {
        name: _budget({key: value for key, value in table.items() if key != ALL}, f'{title}."{name}"]', ALL)
        for name, table in tables.items()
        if table.keys() != {ALL}  # which says nothing of each of them
    }
    return Budgets(_budget(usual, f"{title}]"), by_agent, joint)


def _budget(table: dict[str, Any], where: str, *others: str) -> Budget:
    """others: what may stand there, too."""
    known = Budget.__struct_fields__
    if unknown := sorted(table.keys() - set(known)):
        raise InvalidValue(f"{where}: unknown setting {unknown[0]!r}", hint=f"known are {', '.join((*known, *others))}")
    try:
        budget = msgspec.convert(table, Budget)
        budget.check()
    except (msgspec.ValidationError, InvalidValue) as error:
        raise InvalidValue(f"{where}: {error}", hint="for example usd = 5.0") from error
    return budget


def _joint(name: str, table: Any, where: str) -> JointBudget:
    if not isinstance(table, dict):
        raise InvalidValue(f"{where}: it is not a table", hint='for example {per = "day", usd = 5.0}')
    if len(name) > NAME_MAX or not name.isprintable():
        message = f"{where}: that is no name of a budget: it is kept under it"
        raise InvalidValue(message, hint=f"It has up to {NAME_MAX} characters that can be printed.")
    budget = _budget({key: value for key, value in table.items() if key != "per"}, where, "per")
    if not budget.is_any:
        raise InvalidValue(f"{where}: it has no limit", hint='for example per = "day" and usd = 5.0')
    try:
        return msgspec.convert({"name": name, "per": table.get("per", ""), "budget": budget}, JointBudget)
    except msgspec.ValidationError as error:
        raise InvalidValue(f"{where}: per is {table['per']!r}", hint='It is "day", "month", or "" for ever.') from error

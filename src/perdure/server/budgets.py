"""What runs may spend on models that say nothing else: ``HOME/settings.toml``, its tables ``[budgets]``::

[budgets]
tokens = 2_000_000             # 0 (usual): as many as they like
calls = 500
usd = 5.0

[budgets."research*"]          # of agents whose name fits: a function's, or FILE.py:FUNCTION
usd = 20.0                     # the rest as above
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.errors import InvalidValue
from perdure.host.paths import Home
from perdure.host.settings import document, place
from perdure.model import Budget
from perdure.runs.budgets import Budgets


def load(home: Home) -> Budgets:
    """InvalidValue names the wrong line."""
    title, found = f"{place(home)}: [budgets", document(home).get("budgets", {})
    if not isinstance(found, dict):
        raise InvalidValue(f"{place(home)}: budgets is not a table", hint="write a [budgets] section")
    by_agent = {name: _budget(table, f'{title}."{name}"]') for name, table in found.items() if isinstance(table, dict)}
    usual = {name: value for name, value in found.items() if name not in by_agent}
    return Budgets(_budget(usual, f"{title}]"), by_agent)


def _budget(table: dict[str, Any], where: str) -> Budget:
    known = Budget.__struct_fields__
    if unknown := sorted(table.keys() - set(known)):
        raise InvalidValue(f"{where}: unknown setting {unknown[0]!r}", hint=f"known are {', '.join(known)}")
    try:
        budget = msgspec.convert(table, Budget)
        budget.check()
    except (msgspec.ValidationError, InvalidValue) as error:
        raise InvalidValue(f"{where}: {error}", hint="for example usd = 5.0") from error
    return budget

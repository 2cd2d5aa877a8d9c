"""How many workers of the replay road may live at once: ``HOME/settings.toml``; the environment comes first.

[workers]
max = 16               # PERDURE_WORKERS_MAX: other starts wait for one to end
"""

from __future__ import annotations

from collections.abc import Mapping

from perdure.host.paths import Home
from perdure.host.settings import Table

USUAL = 16
LARGEST = 10_000


def limit(home: Home, environ: Mapping[str, str] | None = None) -> int:
    """Raises InvalidValue that names the wrong line."""
    return Table(home, "workers", {"max": "PERDURE_WORKERS_MAX"}, environ).number("max", USUAL, 1, LARGEST)

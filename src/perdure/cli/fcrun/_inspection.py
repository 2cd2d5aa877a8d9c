"""What the ``inspect`` commands print: all that was found, and then what was not."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from perdure.cli.fcrun import _format
from perdure.errors import PerdureError


def show(found: Sequence[Mapping[str, Any]], missing: Sequence[PerdureError], form: str) -> int:
    """As one JSON list, or each by the template ``form``; errors to standard error. The command's exit status."""
    if form == "json":
        import json

        print(json.dumps(found, indent=4))
    else:
        for one in found:
            print(_format.fill(form, one))
    for error in missing:
        sys.stderr.write(f"fcrun: {error}\n")
    if not missing:
        return 0
    from perdure.cli.fcrun._node import FAILED

    return FAILED

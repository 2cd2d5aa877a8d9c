"""What a value may be that a run is given or gives: JSON, and not too large. Pure.

A value travels whole, in every answer that it is part of. What is larger than this is a file: it is kept in the
machine (and in its snapshots), or in a place outside that the value names.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.context.log import canonical
from perdure.errors import InvalidValue, TooLarge

VALUE_MAX_BYTES = 1 << 20  # of JSON; perdure.agent.values refuses the same in the guest
_AROUND_BYTES = 4096  # what a call's body has beside the value


def check_value(value: Any, what: str) -> None:
    """Raises TooLarge (an InvalidValue) with the size and the limit."""
    _check_size(len(canonical(value)), VALUE_MAX_BYTES, what)


def read_body(data: bytes, what: str) -> Any:
    """The JSON of a call's body. InvalidValue: it is not JSON. TooLarge."""
    _check_size(len(data), VALUE_MAX_BYTES + _AROUND_BYTES, what)
    try:
        return msgspec.json.decode(data or b"{}")
    except RecursionError:
        raise InvalidValue(f"{what} is nested too deeply", hint="Lists in lists: 1,000 levels are too many.") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{what} is not JSON: {error}") from error


def _check_size(size: int, limit: int, what: str) -> None:
    if size > limit:
        hint = "Keep large things in files, and give their names."
        raise TooLarge(f"{what} has {size} bytes of JSON, the limit is {VALUE_MAX_BYTES}", hint=hint, size_bytes=size)

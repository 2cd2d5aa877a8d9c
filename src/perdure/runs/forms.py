"""Forms: the fields that a person fills in with an approval. Pure."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from perdure.errors import InvalidValue
from perdure.model import Frozen

FIELDS_MAX = 50


class Field(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One field. ``label``: what the person reads (the name). ``choices``: the texts that a choice is one of."""

    name: str
    type: Literal["text", "number", "boolean", "choice"] = "text"
    label: str = ""
    required: bool = True
    choices: list[str] = msgspec.field(default_factory=list)


def check_form(form: list[Field]) -> None:
    """Raises InvalidValue naming the field."""
    if len(form) > FIELDS_MAX:
        raise InvalidValue(f"the form has {len(form)} fields", hint=f"It has at most {FIELDS_MAX}.")
    names = [field.name for field in form]
    for field in form:
        if not field.name or "=" in field.name or not field.name.isprintable():
            raise InvalidValue(f"not the name of a field: {field.name!r}", hint="It is text without =.")
        if names.count(field.name) > 1:
            raise InvalidValue(f"two fields of the form are named {field.name!r}")
        if (field.type == "choice") != bool(field.choices):
            raise InvalidValue(
                f"field {field.name!r} is a {field.type} with {len(field.choices)} choices",
                hint='A field has "choices" where its type is choice, and only there.',
            )


def check_values(form: list[Field], values: dict[str, Any], *, complete: bool) -> dict[str, Any]:
    """What was filled in, with None for what was left out. InvalidValue names the field.

    complete: required fields must be there (a refusal may leave the form as it is).
    """
    fields = {field.name: field for field in form}
    for name, value in values.items():
        if name not in fields:
            hint = f"It has: {', '.join(fields)}." if fields else "It has none: leave the values out."
            raise InvalidValue(f"the form has no field {name!r}", hint=hint)
        if value is not None:
            _check_value(fields[name], value)
    missing = [field for field in form if field.required and values.get(field.name) in (None, "")]
    if missing and complete:
        label = f" ({missing[0].label})" if missing[0].label else ""
        hint = f"`perdure approve RUN --set {missing[0].name}=VALUE`; it is {_wanted(missing[0])}."
        raise InvalidValue(f"field {missing[0].name!r}{label} is not filled in", hint=hint)
    return {name: values.get(name) for name in fields}


def _check_value(field: Field, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "text": isinstance(value, str),
        "number": is_number and math.isfinite(value),
        "boolean": isinstance(value, bool),
        "choice": value in field.choices,
    }
    if not fits[field.type]:
        shown = msgspec.json.encode(value)[:60].decode("utf-8", "replace")
        raise InvalidValue(f"field {field.name!r} is to be {_wanted(field)}, and is {shown}", field=field.name)


def _wanted(field: Field) -> str:
    if field.type == "choice":
        return "one of " + ", ".join(field.choices)
    return {"text": "text", "number": "a number", "boolean": "true or false"}[field.type]

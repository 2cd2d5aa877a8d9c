"""The values an agent gets and gives, and their way to JSON and back. Pure."""

from __future__ import annotations

import json
import sys

from perdure.errors import InvalidValue, TooLarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from typing import Any, Literal

    Duration = float | int | str
    Moment = float | int | str | datetime

VALUE_MAX_BYTES = 1 << 20  # of JSON, as in perdure.runs.bounds
_INFINITE = float("inf")
_FORMS = {  # what makes a type of others, by the name of its own type: importing typing costs a guest dear
    "UnionType": "union",
    "Union": "union",
    "_UnionGenericAlias": "union",
    "_LiteralGenericAlias": "literal",
    "_AnnotatedAlias": "annotated",
}
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


class Cancelled(BaseException):
    """The run is to end; ``str()`` of it says why.

    It is raised once, by the call or the wait that the agent is at: clean up and return, or let it pass. What is asked
    meanwhile is answered as ever, for some time (30 s, or what ``perdure cancel --clean-up`` says). No ``Exception``:
    an ``except Exception`` around a tool is not meant to catch it.
    """


class ToolCall:
    """A tool that a model wants to be used. ``ctx.use`` does it. ``text``: its arguments, as the model wrote them."""

    __slots__ = ("id", "name", "text", "tools")

    def __init__(self, id: str, name: str, text: str, tools: dict[str, Any]) -> None:
        """tools: the functions that the model was told of, by name."""
        self.id = id
        self.name = name
        self.text = text
        self.tools = tools

    @property
    def arguments(self) -> dict[str, Any]:
        """``InvalidValue``: what the model wrote is no JSON object."""
        try:
            value = json.loads(self.text or "{}")
        except ValueError as error:
            raise InvalidValue(f"the arguments of {self.name} are not JSON: {error}") from None
        if not isinstance(value, dict):
            raise InvalidValue(f"the arguments of {self.name} are to be an object, and are {_name(value)}")
        return value

    def __repr__(self) -> str:
        return f"ToolCall({self.name!r}, {self.text!r})"


class Turn:
    """One answer of a model. ``message`` can be appended to the messages of the next turn as it is."""

    __slots__ = ("completion_tokens", "finish_reason", "message", "model", "prompt_tokens", "text", "tools")

    def __init__(
        self,
        text: str,
        message: dict[str, Any],
        *,
        model: str = "",
        finish_reason: str = "",
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        tools: dict[str, Any] | None = None,
    ) -> None:
        """tools: the functions that the model was told of, by name."""
        self.text = text
        self.message = message
        self.model = model
        self.finish_reason = finish_reason
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.tools = tools or {}

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The tools that the model wants to be used; none: it has said what it had to say."""
        asked = [(call.get("id") or "", call.get("function") or {}) for call in self.message.get("tool_calls") or []]
        return [ToolCall(id, said.get("name") or "", said.get("arguments") or "", self.tools) for id, said in asked]

    @property
    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}

    def __repr__(self) -> str:
        return f"Turn({self.text!r}, model={self.model!r}, usage={self.usage})"


class Field:
    """One field of the form that a person fills in. ``type``: text, number, boolean or choice (one of ``choices``)."""

    __slots__ = ("choices", "label", "name", "required", "type")

    def __init__(
        self,
        name: str,
        type: Literal["text", "number", "boolean", "choice"] | None = None,
        *,
        label: str = "",
        required: bool = True,
        choices: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.choices = list(choices)
        self.type = type or ("choice" if self.choices else "text")
        self.label = label
        self.required = required

    def __repr__(self) -> str:
        return f"Field({self.name!r}, {self.type!r})"


class Verdict:
    """What a person decided. ``at``: seconds since the epoch; a timeout is not approved, with ``timed_out``.

    ``values``: what was filled in, by name of the form's fields; None for a field that was left out.
    """

    __slots__ = ("approved", "at", "by", "comment", "timed_out", "values")

    def __init__(
        self,
        approved: bool,
        comment: str = "",
        by: str = "",
        at: float = 0.0,
        timed_out: bool = False,
        values: dict[str, Any] | None = None,
    ) -> None:
        self.values = values or {}
        self.approved = approved
        self.comment = comment
        self.by = by
        self.at = at
        self.timed_out = timed_out

    def __bool__(self) -> bool:
        return self.approved

    def __repr__(self) -> str:
        return (
            f"Verdict(approved={self.approved}, comment={self.comment!r}, by={self.by!r}, timed_out={self.timed_out})"
        )


class Forks:
    """What ``ctx.fork`` returns, once in each: ``number`` is 0 in the run that asked, and from 1 on in its forks.

    ``runs``: the ids of those, in their order.
    """

    __slots__ = ("number", "runs")

    def __init__(self, number: int, runs: list[str]) -> None:
        self.number = number
        self.runs = runs

    def __repr__(self) -> str:
        return f"Forks(number={self.number}, runs={self.runs!r})"


def seconds(duration: Duration, what: str = "duration") -> float:
    """``3``, ``0.5``, ``"90s"``, ``"15m"``, ``"3d"``, ``"1d12h"`` or a timedelta, in seconds. ``InvalidValue``."""
    if hasattr(duration, "total_seconds"):
        duration = duration.total_seconds()
    if isinstance(duration, (int, float)) and not isinstance(duration, bool):
        value = float(duration)
    elif isinstance(duration, str):
        value = _parsed(duration, what)
    else:
        raise _no_duration(duration, what)
    if not 0 <= value < float("inf"):
        raise _no_duration(duration, what)
    return value


def moment(at: Any, what: str) -> float | str:
    """ISO 8601 with its time zone, a datetime with one, or seconds since 1970. The host reads what is text."""
    if hasattr(at, "timestamp"):
        if at.tzinfo is None:
            raise InvalidValue(f"{what}: {at} has no time zone", hint="datetime(..., tzinfo=UTC)")
        return float(at.timestamp())
    if not isinstance(at, (int, float, str)) or isinstance(at, bool) or at != at or at in (_INFINITE, -_INFINITE):
        raise InvalidValue(
            f"{what}: {at!r} is not a moment", hint='write "2026-05-01T09:00:00Z", or seconds since 1970'
        )
    return at


def _parsed(text: str, what: str) -> float:
    total, number, unit = 0.0, "", ""
    for sign in text.replace(" ", "") + "\0":
        if sign.isdigit() or sign == "." or sign == "\0":
            if unit:
                if unit not in _UNITS_S:
                    raise _no_duration(text, what)
                try:
                    total += float(number) * _UNITS_S[unit]
                except ValueError:
                    raise _no_duration(text, what) from None
                number, unit = "", ""
            number += sign
        else:
            unit += sign
    if number != "\0" or len(text) == 0:
        raise _no_duration(text, what)
    return total


def _no_duration(value: Any, what: str) -> InvalidValue:
    return InvalidValue(
        f"{what}: {value!r} is not a length of time", hint='write seconds, or "90s", "15m", "12h", "3d"'
    )


def to_json(value: Any, what: str) -> Any:
    """``value`` as JSON would give it back (tuples are lists, dataclasses objects). ``InvalidValue`` names ``what``."""
    try:
        text = json.dumps(value, default=_dataclass, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())  # half a surrogate pair is no text: no other JSON parser takes it
    except (TypeError, ValueError, RecursionError) as error:
        hint = "give JSON values (str, int, float, bool, None, list, dict) or dataclasses of them"
        raise InvalidValue(f"{what} is not a JSON value: {error}", hint=hint) from None
    if size > VALUE_MAX_BYTES:
        hint = "keep large things in files, and give their names"
        raise TooLarge(f"{what} has {size} bytes of JSON, the limit is {VALUE_MAX_BYTES}", hint=hint)
    return json.loads(text)


def _dataclass(value: Any) -> Any:
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is None:
        raise TypeError(f"a {type(value).__name__} is in it")
    return {name: getattr(value, name) for name in fields}


def resolved(wanted: Any, names: dict[str, Any]) -> Any:
    """The type that an annotation names, where it is a string; None where only a type checker understands it."""
    if not isinstance(wanted, str):
        return wanted
    try:
        return eval(wanted, names)  # what typing.get_type_hints does; the author's own file
    except Exception:
        return None


def form(kind: Any) -> tuple[str, tuple[Any, ...]]:
    """How an annotation is made (union, literal, annotated, list or dict) and of what; "": none of these."""
    origin, of = getattr(kind, "__origin__", None), getattr(kind, "__args__", ())
    made = _FORMS.get(type(kind).__name__, "")
    if not made and of and origin in (list, dict):
        made = origin.__name__
    return made, of


def from_json(value: Any, wanted: Any, what: str, names: dict[str, Any]) -> Any:
    """``value`` as the annotation ``wanted`` asks: a dataclass is made, a plain type is checked, also within lists,
    dicts and what may be None; others pass.

    ``names``: the globals that a string annotation is read in. ``InvalidValue`` says what was wanted.
    """
    wanted = resolved(wanted, names)
    if hasattr(wanted, "__dataclass_fields__"):
        return _make(value, wanted, what)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted in (str, int, float, bool, list, dict) and (
        not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)
    ):
        raise InvalidValue(f"{what} is to be {wanted.__name__}, and is {_name(value)}: {_short(value)}")
    made, of = form(wanted)
    if made == "annotated":
        return from_json(value, of[0], what, names)
    if made == "list":
        items = from_json(value, list, what, names)
        return [from_json(item, of[0], f"{what}[{number}]", names) for number, item in enumerate(items)]
    if made == "dict":
        items = from_json(value, dict, what, names)
        return {key: from_json(item, of[1], f"{what}.{key}", names) for key, item in items.items()}
    if made == "literal" and value not in of:
        raise InvalidValue(f"{what} is to be one of {', '.join(map(repr, of))}, and is {_short(value)}")
    if made == "union" and value is not None:
        others = [one for one in of if one is not type(None)]
        return from_json(value, others[0], what, names) if len(others) == 1 else value
    return value


def _make(value: Any, wanted: Any, what: str) -> Any:
    if not isinstance(value, dict):
        raise InvalidValue(f"{what} is to be an object for {wanted.__name__}, and is {_name(value)}: {_short(value)}")
    fields = wanted.__dataclass_fields__
    if unknown := sorted(set(value) - set(fields)):
        raise InvalidValue(f"{what}: {wanted.__name__} has no {unknown[0]!r}", hint=f"it has {', '.join(fields)}")
    names = vars(sys.modules[wanted.__module__]) if wanted.__module__ in sys.modules else {}
    made = {name: from_json(item, fields[name].type, f"{what}.{name}", names) for name, item in value.items()}
    try:
        return wanted(**made)
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"{what} does not make a {wanted.__name__}: {error}") from None


def _name(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

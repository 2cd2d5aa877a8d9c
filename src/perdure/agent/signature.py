"""What a function takes, without ``inspect``: to check what it is given, and to tell a model of it. Pure."""

from __future__ import annotations

import sys

from perdure.agent.values import form, from_json, resolved
from perdure.errors import InvalidValue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
_HAS_KEYWORDS = 0x08  # CO_VARKEYWORDS of code objects (the documentation of inspect)


class Signature:
    """names: its parameters. optional: those that have a default. kinds: their annotations, by name."""

    def __init__(self, function: Callable[..., Any], *, skip: int = 0, without: str = "") -> None:
        """skip: so many of the first are not its caller's to give; nor is ``without``."""
        code: Any = getattr(function, "__code__", None)
        if code is None:
            raise InvalidValue(f"{function!r} is no function", hint="write one around it, with annotations")
        self.name: str = function.__name__
        skip += hasattr(function, "__self__")
        given: Any = function
        positional = list(code.co_varnames[skip : code.co_argcount])
        named = list(code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])
        with_default = positional[len(positional) - len(given.__defaults__ or ()) :]
        self.names = [name for name in positional + named if name != without]
        self.optional = {*with_default, *(given.__kwdefaults__ or ())}
        self.globals: dict[str, Any] = given.__globals__
        self.kinds = {key: resolved(kind, self.globals) for key, kind in given.__annotations__.items()}
        self.has_keywords = bool(code.co_flags & _HAS_KEYWORDS)

    def check(self, given: dict[str, Any], what: str) -> dict[str, Any]:
        """The keyword arguments that ``given`` makes; each is called ``what`` in an ``InvalidValue``."""
        hint = f"it takes: {', '.join(self.names) or 'nothing'}"
        if not self.has_keywords and (unknown := sorted(set(given) - set(self.names))):
            raise InvalidValue(f"{self.name} takes no {what} {unknown[0]!r}", hint=hint)
        if missing := [key for key in self.names if key not in given and key not in self.optional]:
            raise InvalidValue(f"{self.name} needs the {what} {missing[0]!r}", hint=hint)
        return {
            key: from_json(value, self.kinds.get(key), f"the {what} {key!r}", self.globals)
            for key, value in given.items()
        }

    def schema(self) -> dict[str, Any]:
        """The JSON schema of what it takes."""
        try:
            properties = {name: schema(self.kinds.get(name), self.globals) for name in self.names}
        except RecursionError:
            raise InvalidValue(f"{self.name} takes a type that contains itself: a model is not told of it") from None
        required = [name for name in self.names if name not in self.optional]
        return {"type": "object", "properties": properties, "required": required}


def schema(kind: Any, names: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of an annotation: ``{}``, anything, where it says nothing that JSON has a word for.

    names: the globals that a string annotation is read in.
    """
    kind = resolved(kind, names)
    if kind is type(None):
        return {"type": "null"}
    if isinstance(kind, type) and kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if hasattr(kind, "__dataclass_fields__"):
        return _of_dataclass(kind)
    made, of = form(kind)
    if made == "annotated":  # Annotated[str, "what it is"]
        told = [text for text in kind.__metadata__ if isinstance(text, str)]
        return {**schema(of[0], names), **({"description": told[0]} if told else {})}
    if made == "literal":
        return {"enum": list(of)}
    if made == "union":
        return {"anyOf": [schema(one, names) for one in of]}
    if made == "list":
        return {"type": "array", "items": schema(of[0], names)}
    if made == "dict":
        return {"type": "object", "additionalProperties": schema(of[1], names)}
    return {}


def _of_dataclass(kind: Any) -> dict[str, Any]:
    names = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
    missing = sys.modules["dataclasses"].MISSING  # it is imported: there is a dataclass
    fields = {name: field for name, field in kind.__dataclass_fields__.items() if field.init}
    required = [name for name, field in fields.items() if field.default is missing and field.default_factory is missing]
    properties = {name: schema(field.type, names) for name, field in fields.items()}
    return {"type": "object", "properties": properties, "required": required}

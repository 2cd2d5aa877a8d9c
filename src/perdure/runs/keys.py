"""What a run is called by from outside: its key, which starts it once; its tags and metadata. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from perdure.context.log import Head, canonical
from perdure.errors import Conflict, InvalidValue
from perdure.runs.bounds import check_value

if TYPE_CHECKING:
    from perdure.runs.record import StartRequest

LENGTH_MAX = 256  # characters of a key, a tag's name or value
TAGS_MAX = 64


def check_tags(tags: Mapping[str, str | None]) -> None:
    """InvalidValue names the tag."""
    for name, value in tags.items():
        if not name or len(name) > LENGTH_MAX or not name.isprintable() or "=" in name:
            hint = f"It has 1 to {LENGTH_MAX} printable characters, and no '='."
            raise InvalidValue(f"not the name of a tag: {name[:LENGTH_MAX]!r}", hint=hint)
        if value is not None and len(value) > LENGTH_MAX:
            raise InvalidValue(f"the tag {name!r} has {len(value)} characters", hint=f"At most {LENGTH_MAX}.")
    if len(tags) > TAGS_MAX:
        raise InvalidValue(f"{len(tags)} tags", hint=f"A run has at most {TAGS_MAX}.")


def check_name(name: str, what: str) -> None:
    """InvalidValue: nothing that is typed and shown in a line. what: whose name it is."""
    if len(name) > LENGTH_MAX or not name.isprintable():
        hint = f"It has at most {LENGTH_MAX} printable characters."
        raise InvalidValue(f"not the name of a {what}: {name[:40]!r} ({len(name)} characters)", hint=hint)


def check_key(text: str, name: str = "key") -> None:
    """InvalidValue: no key, or too long a one."""
    if not text or len(text) > LENGTH_MAX:
        raise InvalidValue(f"{name} has {len(text)} characters", hint=f"It has 1 to {LENGTH_MAX}.")


def check(request: StartRequest) -> None:
    """Raises InvalidValue naming the field."""
    check_name(request.name, "run")
    check_tags(request.tags)
    check_value(request.metadata, "metadata")
    if request.key is None:
        for name in ("key_scope", "key_ttl_s"):
            if getattr(request, name) is not None:
                raise InvalidValue(f"{name} is of a key, and there is none", hint='Give "key", too.')
        return
    for name, text in (("key", request.key), ("key_scope", request.key_scope or "agent")):
        check_key(text, name)
    if request.key_ttl_s is not None and not request.key_ttl_s > 0:
        raise InvalidValue(f"key_ttl_s is {request.key_ttl_s:g}", hint="It is a number of seconds above 0.")


def _what(request: StartRequest) -> str:
    """What it runs, by name: another version of the same agent is the same."""
    return request.agent or " ".join(request.command)


def scoped(request: StartRequest) -> str | None:
    """The key as the log has it: unique in its scope."""
    if request.key is None:
        return None
    return canonical([request.key_scope or _what(request), request.key]).decode()


def is_over(older: StartRequest, created: float, now: float) -> bool:
    """Whether the key of a run may start another one: as that run said of it when it was started."""
    return older.key_ttl_s is not None and now >= created + older.key_ttl_s


def check_same(head: Head, older: StartRequest, newer: StartRequest) -> None:
    """Raises Conflict where the key is that of a run of something else."""
    if _what(older) != _what(newer):
        what = f"of {_what(older)}"
    elif canonical(older.input) != canonical(newer.input):
        what = "with another input"
    else:
        return
    hint = "Take another key for another run, or this one in another scope (--key-scope)."
    message = f"the key {newer.key!r} is that of run {head.run_id}, {what}"
    raise Conflict(message, hint=hint, run_id=head.run_id)


def tagged(tags: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """The tags after some were set, or (None) taken away. InvalidValue."""
    check_tags(changes)
    after = {name: value for name, value in {**tags, **changes}.items() if value is not None}
    check_tags(after)
    return after

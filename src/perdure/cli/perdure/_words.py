"""How the commands write times, sizes and values. Pure."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.model import JointSpent, RunInfo, Spent

NEVER_S = 1e10  # as a grace: 300 years


def duration(seconds: float) -> str:
    """``0.42s``, ``12.3s``, ``4m 05s``, ``3h 20m``, ``2d 4h``."""
    if seconds < 10:
        return f"{seconds:.2f}s"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest_s = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest_s:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours < 48 else f"{hours // 24}d {hours % 24}h"


def seconds(text: str, what: str) -> float:
    """``90``, ``90s``, ``15m``, ``1d12h`` in seconds. ``InvalidValue`` names ``what``."""
    from perdure.agent.values import seconds as parsed

    return parsed(float(text) if text.replace(".", "", 1).isdigit() else text, what)


def size(count: float) -> str:
    """Bytes in the units that disks have: ``840 B``, ``4.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def clock(moment: float, *, day: bool = False) -> str:
    """A time of this place: ``14:05:09``, with ``day`` ``2026-03-01 14:05:09``."""
    return time.strftime("%Y-%m-%d %H:%M:%S" if day else "%H:%M:%S", time.localtime(moment))


def value(found: Any, limit: int) -> str:
    """A JSON value on one line, in at most ``limit`` characters."""
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return shorten(text, limit)


def period(seconds: float) -> str:
    """A length of time as it is typed: ``15m``, ``90s``, ``0.5s``."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length_s and seconds % length_s == 0:
            return f"{seconds / length_s:.0f}{unit}"
    return f"{seconds:g}s"


def sleeps(info: RunInfo) -> str:
    """How often and how long a run slept, and what its snapshots took; nothing where there is none."""
    if not info.suspends and not info.stored_bytes:
        return ""
    times = "once" if info.suspends == 1 else f"{info.suspends} times"
    slept = f"{times}, {duration(info.suspended_s)} in all" if info.suspends else "never yet"
    if info.durability == "replay":
        return slept
    return f"{slept}; {size(info.stored_bytes)} stored, {len(info.snapshots)} snapshots to go on from"


def asleep(info: RunInfo) -> str:
    """What a run slept over, and what that saved; nothing where it did not sleep."""
    thinking_s, spared = info.suspended_thinking_s, info.spared_memory_gib_s
    parts = [(thinking_s, "while a model thought"), (info.suspended_s - thinking_s, "while it waited")]
    told = [", ".join(f"{duration(part_s)} {what}" for part_s, what in parts if part_s > 0)]
    if info.wall_s:
        told.append(f"{min(info.suspended_s / info.wall_s, 1):.0%} of its time")
    if spared:
        told.append(
            f"{spared:,.0f} GiB·s of memory not held" if spared >= 100 else f"{spared:.3g} GiB·s of memory not held"
        )
    return "; ".join(told) if info.suspended_s else ""


def dollars(amount: float) -> str:
    """``$12.35``, ``$0.0042``: with as many digits as say something."""
    return f"${amount:,.2f}" if amount >= 1 or not amount else f"${amount:.6f}".rstrip("0").ljust(5, "0")


def spent(found: Spent) -> str:
    """What a run's turns have cost; nothing where it has none."""
    if not found.tokens and not found.cost_usd:
        return ""
    about = "about " if found.estimated else ""
    words = [f"{about}{found.input_tokens:,}+{found.output_tokens:,} tokens"]
    if found.cached_tokens:
        words[0] += f" ({found.cached_tokens:,} of them from a cache)"
    if found.unpriced < found.calls and (found.cost_usd or not found.unpriced):
        words.append(about + dollars(found.cost_usd))
    if found.unpriced:
        words.append(f"{found.unpriced} turn{'s' * (found.unpriced > 1)} without a known price")
    return ", ".join(words)


def budget(info: RunInfo | JointSpent) -> str:
    """What may be spent on models, and was; nothing where that has no limit."""
    may, has = info.budget, info.spent
    words = [f"{has.tokens:,} of {may.tokens:,} tokens"] if may.tokens else []
    words += [f"{has.calls:,} of {may.calls:,} calls"] if may.calls else []
    words += [f"{dollars(has.cost_usd)} of {dollars(may.usd)}"] if may.usd else []
    return ", ".join(words)


def joint(info: JointSpent) -> str:
    """The same of all runs of some agents, and when that begins anew."""
    if info.ends is None:
        return budget(info)
    until = time.strftime("%Y-%m-%d %H:%M", time.gmtime(info.ends))
    return f"{budget(info)} this {info.per}, until {until} UTC"


def waits(wait: dict[str, Any]) -> Iterator[str]:
    """An open wait: what for, and until when; then what a person is shown, and the fields to fill in."""
    until = f", until {clock(wait['until'], day=True)}" if wait.get("until") else ""
    part = f", in {wait['of']}" if wait.get("of") else ""
    yield (
        f"{wait['kind']} {wait.get('name') or wait.get('child') or ''}".rstrip() + f" (wait {wait['id']}{part}{until})"
    )
    if wait.get("show") is not None:
        yield f"  shows: {value(wait['show'], 80)}"
    for field in wait.get("form") or ():
        kind = " | ".join(field.get("choices") or ()) or str(field.get("type", "text"))
        may = "" if field.get("required", True) else ", may be left out"
        label = f": {field['label']}" if field.get("label") else ""
        yield f"  --set {field['name']}=… ({kind}{may}){label}"


def place(info: RunInfo) -> str:
    """Where its sandbox is, and where its newest snapshot, too; nothing where it has none."""
    if info.node is None:
        return ""
    newest = info.snapshots[-1] if info.snapshots else {}
    copy = f"; its newest snapshot also in {newest['store']}" if newest.get("store") else ""
    return f"sandbox {info.sandbox_id} at {info.node.said}{copy}"


def policy(found: dict[str, Any]) -> str:
    """When a run's machine sleeps and is captured, in words."""

    def grace(name: str) -> str:
        seconds = found.get(name)
        return "?" if seconds is None else "never" if seconds >= NEVER_S else period(seconds)

    words = [f"sleeps after {grace('idle_grace_s')} of waiting, {grace('think_grace_s')} of a model's thinking"]
    if turns := found.get("checkpoint_turns"):
        words.append("a checkpoint after each turn" if turns == 1 else f"a checkpoint after {turns} turns")
    if seconds := found.get("checkpoint_s"):
        words.append(f"a checkpoint after {period(seconds)} of running")
    return "; ".join(words)


def checkpoint(one: dict[str, Any]) -> str:
    """One snapshot that a run can go on from."""
    kept = "  kept" if one.get("keep") else ""
    return f"entry {one['seq']} of branch {one['branch']}, {clock(one['at'])}, {one['digest'][7:19]}{kept}"


def traceback(error: dict[str, Any] | None) -> str:
    """Where an agent's own code, or a step, raised what ended the run; nothing of what says enough in its message."""
    if error is None or error.get("code") not in ("agent-failed", "step-failed"):
        return ""
    details = error.get("details")
    return str(details.get("traceback") or "") if isinstance(details, dict) else ""


def shorten(text: str, limit: int, *, spaces: bool = False) -> str:
    """On one line, in at most ``limit`` characters. ``spaces``: those between words stay as they are."""
    line = "".join(sign if sign.isprintable() else " " for sign in text)
    line = line if spaces else " ".join(line.split())
    return line if len(line) <= limit else line[: max(0, limit - 1)] + "…"


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Columns, two spaces between them."""
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    lines = [headings, *rows]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )

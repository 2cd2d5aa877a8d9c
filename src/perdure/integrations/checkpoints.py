"""What a thread of LangGraph's is made of, as payloads of entries, and back."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from langgraph.checkpoint.base import WRITES_IDX_MAP, Checkpoint, writes_sort_key
from langgraph.checkpoint.serde.base import SerializerProtocol

from perdure.errors import InvalidValue
from perdure.integrations.keys import joined

Stored = list[str]  # a value as LangGraph's serializer has it: its type, and its bytes in base 64


class Values:
    """Values as LangGraph's serializer has them. ``InvalidValue``: one that it does not take."""

    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde

    def dumps(self, value: Any, what: str) -> Stored:
        """what: how it is called in an error."""
        try:
            kind, content = self._serde.dumps_typed(value)
        except (TypeError, ValueError) as error:
            raise InvalidValue(
                f"{what} cannot be kept: {error}", hint="Give the saver a serde that knows it."
            ) from error
        return [kind, base64.b64encode(content).decode()]

    def loads(self, stored: Stored) -> Any:
        kind, text = stored
        return self._serde.loads_typed((kind, base64.b64decode(text)))

    def of_channel(self, values: Mapping[str, Any], channel: str) -> dict[str, Any]:
        """One version of a channel; lists item by item."""
        if channel not in values:
            return {}  # it is empty in this version
        value, what = values[channel], f"the value of channel {channel!r}"
        if type(value) is list:
            return {"items": [self.dumps(item, what) for item in value]}
        return {"value": self.dumps(value, what)}

    def whole(self, namespace: str, checkpoint: dict[str, Any], stored: Mapping[str | None, Any]) -> Checkpoint:
        """A checkpoint with the values of its channels. stored: those, by the keys of their entries."""
        values: dict[str, Any] = {}
        for channel, version in checkpoint["channel_versions"].items():
            payload = stored.get(joined("channel", namespace, channel, version), {})
            if "value" in payload:
                values[channel] = self.loads(payload["value"])
            elif "items" in payload:
                values[channel] = [self.loads(item) for item in payload["items"]]
        return cast(Checkpoint, {**checkpoint, "channel_values": values})

    def of_writes(self, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str) -> dict[str, Any]:
        """What a task wrote above a checkpoint."""
        written = [
            (WRITES_IDX_MAP.get(channel, index), channel, self.dumps(value, f"what is written to channel {channel!r}"))
            for index, (channel, value) in enumerate(writes)
        ]
        return {"task": task_id, "path": task_path, "writes": written}

    def written(self, payloads: Iterable[Any]) -> list[tuple[str, str, Any]]:
        """What tasks wrote: the first of each, but the last of what is about the task itself (an error, an interrupt
        …), whose index is below 0."""
        found: dict[tuple[str, int], tuple[str, str, Any]] = {}
        for payload in payloads:
            for index, channel, value in payload["writes"]:
                place = payload["task"], index
                if index < 0 or place not in found:
                    found[place] = payload["path"], channel, value
        order = sorted(found, key=lambda place: writes_sort_key(found[place][0], *place))
        return [(task, found[task, index][1], self.loads(found[task, index][2])) for task, index in order]

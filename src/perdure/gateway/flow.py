"""How much of a stream its readers may see while it comes. Pure.

Whole events only: where it breaks off, no half of one stands before the event that says so. And not the last one, nor
an error, before the log has the turn: a program goes on from these.
"""

from __future__ import annotations

from perdure.gateway.dialects.chat import DONE
from perdure.gateway.dialects.dialect import MalformedError, Reading, Summary, shown
from perdure.gateway.events import Cutter, read


class Flow:
    """``visible``: so many bytes from the beginning may be seen; ``events``: so many events are in them. ``whole``: so
    many bytes are whole events. ``is_over``: what ended the answer has come."""

    def __init__(self, reading: Reading) -> None:
        self.visible = 0
        self.events = 0
        self.whole = 0
        self.is_over = False
        self._reading = reading
        self._cutter = Cutter()
        self._begun = bytearray()  # the event that is still coming

    def add(self, piece: bytes) -> None:
        """The next bytes. ``MalformedError``: what came before the event that is none may be seen."""
        done = 0
        for end in self._cutter.ends(piece):
            self._begun += piece[done:end]
            done = end
            self._take()
        self._begun += piece[done:]

    def end(self) -> Summary:
        """Nothing more comes. ``MalformedError``: it ended in the middle of an event."""
        if self._begun and not self.is_over:
            rest = bytes(self._begun)
            try:
                is_cut = self._reading.take(read(rest)) and read(rest).data != DONE
            except MalformedError:
                is_cut = True
            if is_cut:  # without its empty line it is none to an SDK
                raise MalformedError(f"the stream ended in the middle of it: {shown(rest)}")
        return self._reading.summary()

    def summary(self) -> Summary:
        return self._reading.summary()

    def _take(self) -> None:
        raw = bytes(self._begun)
        if not self.is_over:  # whatever may come behind
            self.is_over = self._reading.take(read(raw))
        self._begun.clear()
        self.whole += len(raw)
        if not self.is_over:
            self.visible += len(raw)
            self.events += 1

"""What a run's program printed, as the commands show it."""

from __future__ import annotations

import os

from perdure.model import OutputPiece


def write(descriptor: int, data: bytes) -> None:
    """All of it, at once: nothing is kept back."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class Seams:
    """Where the pieces of a run's output do not follow on one another, and why.

    ``offset``: that the first piece is to begin at; None: wherever it does.
    """

    def __init__(self, life: str = "", offset: int | None = 0) -> None:
        self._life = life
        self._end = offset
        self._written: dict[str, int] = {}  # by stream: how far the process was in it

    def before(self, piece: OutputPiece) -> str:
        """What is to be said before this piece; nothing where it goes on from the one before."""
        said = ""
        if self._life not in ("", piece.life):
            said, self._end, self._written = "another start, which begins anew:", 0, {}
        if self._end is not None and piece.offset > self._end:
            said = f"{piece.offset - self._end} bytes before this are not kept"
        elif piece.at < self._written.get(piece.stream, 0):
            said = "restored to an earlier moment: what follows may be there already"
        self._life, self._end = piece.life, piece.end
        self._written[piece.stream] = piece.at + len(piece.data)
        return said

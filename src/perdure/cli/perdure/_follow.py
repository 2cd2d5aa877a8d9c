"""Following a run on the terminal."""

from __future__ import annotations

import os
import shutil
import sys
import threading

from perdure.cli.perdure._output import Seams, write
from perdure.cli.perdure._story import WIDTH, Story
from perdure.client.server import ENDED, ServerClient
from perdure.errors import NotFound, PerdureError
from perdure.model import OutputPiece, RunInfo

REST_S = 30.0  # so long what a program printed may take to come after the run has ended
SHOWN_BYTES = 1 << 16


def width(stream_is_tty: bool) -> int:
    """Columns to fill: the terminal's, at most 100."""
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) if stream_is_tty else WIDTH


class Follower:
    """Shows one run as it goes: its story on stderr, and beside it what its program prints.

    is_command: what that printed to its stdout is shown on ours; of an agent all goes to stderr, as stdout has its
    result. quiet: no story.
    """

    def __init__(self, server: ServerClient, run: str, *, is_command: bool, quiet: bool) -> None:
        self._server = server
        self._run = run
        self._is_command = is_command
        self._quiet = quiet
        self._lock = threading.Lock()
        self._half = False  # a line that the program has not ended yet is on the terminal
        self._one_place = os.isatty(1) and os.isatty(2)
        self._shown = b""  # the last of what was written to stderr
        self._error: PerdureError | None = None

    def follow(self) -> RunInfo:
        """Until it has ended; the run at its end."""
        printing = threading.Thread(target=self._print, daemon=True)
        printing.start()
        try:
            self._story()
        except NotFound as error:
            if self._server.get(self._run).state not in ENDED:
                raise
            self._tell(error.message)  # it was pruned: only its result is there
        printing.join(REST_S)
        with self._lock:
            if self._error is not None or printing.is_alive():
                why = self._error.message if self._error is not None else "the rest does not come"
                self._say(f"perdure: what it printed: {why}\n  'perdure logs {self._run}' shows it")
            elif self._half:
                self._say("", end="")
        return self._server.get(self._run, wait_s=10)

    def _story(self) -> None:
        story = Story(width(sys.stderr.isatty()))
        for entry in self._server.entries(self._run, follow=True):
            for line in story.lines(entry):
                self._tell(line)

    def has_shown(self, text: str) -> bool:
        """Whether the program itself has said this, near its end."""
        return text.encode().strip() in self._shown

    def _tell(self, line: str) -> None:
        with self._lock:
            if not self._quiet:
                self._say(line)

    def _say(self, text: str, end: str = "\n") -> None:
        """On a line of its own. Under the lock."""
        lead, self._half = "\n" if self._half else "", False
        print(f"{lead}{text}", end=end, file=sys.stderr, flush=True)

    def _print(self) -> None:
        seams = Seams()
        try:
            for piece in self._server.printed(self._run, follow=True):
                with self._lock:
                    self._show(piece, seams)
        except PerdureError as error:
            self._error = error
        except BrokenPipeError:  # who reads our stdout has gone
            import _thread

            _thread.interrupt_main()

    def _show(self, piece: OutputPiece, seams: Seams) -> None:
        if seam := seams.before(piece):
            self._say(f"perdure: {seam}")
        place = 1 if self._is_command and piece.stream == "stdout" else 2
        write(place, piece.data)
        if place == 2:
            self._shown = (self._shown + piece.data)[-SHOWN_BYTES:]
        if piece.data and (place == 2 or self._one_place):
            self._half = not piece.data.endswith(b"\n")

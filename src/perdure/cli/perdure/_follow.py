"""Following a run on the terminal."""

from __future__ import annotations

import shutil
import sys

from perdure.cli.perdure._story import WIDTH, Story
from perdure.client.server import ServerClient
from perdure.model import RunInfo


def width(stream_is_tty: bool) -> int:
    """Columns to fill: the terminal's, at most 100."""
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) if stream_is_tty else WIDTH


def tell(server: ServerClient, run: str) -> RunInfo:
    """Tell the run's story on stderr until it ends; the run at its end."""
    story = Story(width(sys.stderr.isatty()))
    for entry in server.entries(run, follow=True):
        for line in story.lines(entry):
            print(line, file=sys.stderr, flush=True)
    return server.get(run, wait_s=10)

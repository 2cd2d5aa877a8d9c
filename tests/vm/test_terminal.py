"""fcrun at a terminal: raw mode and back, sizes, keys, and leaving a shell that goes on."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from perdure.client.node import NodeClient
from perdure.model import SandboxState

from .conftest import DEADLINE_S, IMAGE

pytestmark = pytest.mark.vm
CTRL_C, CTRL_P, CTRL_Q = b"\x03", b"\x10", b"\x11"


class AtTerminal:
    """The command with a terminal of its own, of 30 rows and 100 columns."""

    def __init__(self, *argv: str) -> None:
        self._ours, self._theirs = pty.openpty()
        self._seen = b""
        self.resize(30, 100)
        self.modes = termios.tcgetattr(self._theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "perdure.cli.fcrun", *argv],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def until(self, words: bytes) -> None:
        """Read until these words are on the screen, after those before."""
        deadline = time.monotonic() + DEADLINE_S
        while words not in self._seen:
            left_s = deadline - time.monotonic()
            assert left_s > 0 and select.select([self._ours], [], [], left_s)[0], self._seen
            self._seen += os.read(self._ours, 4096)
        self._seen = self._seen.partition(words)[2]

    def ended(self) -> int:
        """Its exit status; the terminal is as it was."""
        status = self.process.wait(DEADLINE_S)
        assert termios.tcgetattr(self._theirs) == self.modes
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


@pytest.fixture
def at_terminal(client: NodeClient) -> Iterator[Callable[..., AtTerminal]]:
    made: list[AtTerminal] = []

    def start(*argv: str) -> AtTerminal:
        made.append(AtTerminal(*argv))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_a_shell_at_a_terminal(at_terminal: Callable[..., AtTerminal], client: NodeClient) -> None:
    terminal = at_terminal("run", "-it", "--rm", IMAGE, "sh")
    terminal.until(b"# ")
    terminal.type(b"stty size\n")
    terminal.until(b"30 100\r\n")
    terminal.resize(40, 120)
    os.kill(terminal.process.pid, signal.SIGWINCH)
    terminal.type(b'while test "$(stty size)" != "40 120"; do :; done; echo re"sized"\n')
    terminal.until(b"resized\r\n")
    # said by what a key would end, once it is in the foreground: the shell itself would wait on after one that is early
    terminal.type(b"sh -c 'echo be\"gun\"; exec sleep 1000'\n")
    terminal.until(b"begun\r\n")
    terminal.type(CTRL_C)  # a key of the shell's, not a signal for fcrun
    terminal.type(b'echo af"ter"; exit 7\n')
    terminal.until(b"after\r\n")
    assert terminal.ended() == 7
    assert client.list() == []


def test_ctrl_p_ctrl_q_leaves_it_running(at_terminal: Callable[..., AtTerminal], client: NodeClient) -> None:
    terminal = at_terminal("run", "-it", "--name", "box", IMAGE, "sh")
    terminal.until(b"# ")
    terminal.type(b'word=kept; echo re"ady"\n')
    terminal.until(b"ready\r\n")
    terminal.type(CTRL_P)
    terminal.type(CTRL_Q)
    assert terminal.ended() == 0
    assert client.get("box").state is SandboxState.RUNNING
    again = at_terminal("attach", "box")
    again.type(b'echo "it was $word"; exit 3\n')
    again.until(b"it was kept\r\n")
    assert again.ended() == 3


def test_exec_at_a_terminal(
    at_terminal: Callable[..., AtTerminal], client: NodeClient, start: Callable[..., object]
) -> None:
    start("sleep", "1000", name="box")
    terminal = at_terminal("exec", "-it", "box", "sh", "-c", "tty; stty size; read line; echo got $line; exit 4")
    terminal.until(b"/dev/pts/")
    terminal.until(b"30 100\r\n")
    terminal.type(b"word\n")
    terminal.until(b"got word\r\n")
    assert terminal.ended() == 4
    refused = at_terminal("exec", "-it", "box", "no-such-command")
    refused.until(b"no-such-command")
    assert refused.ended() == 127

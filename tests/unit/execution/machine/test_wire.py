"""What is said of a launcher that does not answer."""

from __future__ import annotations

import contextlib
import socket

import pytest

from perdure.errors import Unavailable
from perdure.execution.machine.wire import Wire
from perdure.model import LauncherAddress


async def test_one_that_does_not_take_the_connection_in_time_is_said_to_have_timed_out() -> None:
    with contextlib.ExitStack() as open_sockets:
        deaf = open_sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address, waiting = deaf.getsockname(), True
        while waiting:  # until its queue is full, and whoever comes is left to wait
            one = open_sockets.enter_context(socket.socket())
            one.settimeout(0.1)
            try:
                one.connect(address)
            except TimeoutError:
                waiting = False
        with pytest.raises(Unavailable, match=r"does not answer at 127\.0\.0\.1:\d+: timed out"):
            await Wire.open(LauncherAddress("", tcp_port=address[1]), {}, timeout_s=0.1)

"""What a node's sandbox wrote, as a server asks for it: by byte, with where it is in the process's output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient
from perdure.errors import NotFound, Unavailable
from perdure.execution.sandboxes.logfile import LogFile
from perdure.formats.logs import STDERR, STDOUT
from perdure.model import OutputPiece, SandboxSpec
from perdure.server.printed import printed
from perdure.testing.tinynodes import new_home, tiny_node


@pytest.fixture
def client(tmp_path: Path) -> Iterator[NodeClient]:
    with tiny_node(new_home(tmp_path)) as client:
        yield client


async def pieces(client: NodeClient, ref: str, offset: int = 0, **how: int) -> list[OutputPiece]:
    return [piece async for piece in printed(client.home.socket("fcrund"), ref, offset, follow=False, **how)]


async def test_it_is_read_from_any_byte_on(client: NodeClient) -> None:
    ref = client.create(SandboxSpec(image="tiny", command=["true"])).id
    log = LogFile(client.home.sandboxes / ref / "log")
    log.restart()
    log.append(STDOUT, b"one\n")
    log.append(STDERR, b"two\n")
    log.restart(0, 4)
    log.append(STDOUT, b"one\nthree\n")
    log.close()
    whole = [("stdout", 0, 0, b"one\n"), ("stderr", 4, 0, b"two\n"), ("stdout", 8, 0, b"one\nthree\n")]

    def seen(found: list[OutputPiece]) -> list[tuple[str, int, int, bytes]]:
        assert {piece.life for piece in found} <= {ref}
        return [(piece.stream, piece.offset, piece.at, piece.data) for piece in found]

    assert seen(await pieces(client, ref)) == whole
    assert seen(await pieces(client, ref, 4)) == whole[1:]
    assert seen(await pieces(client, ref, 6)) == [("stderr", 6, 2, b"o\n"), whole[2]]
    assert seen(await pieces(client, ref, 9)) == [("stdout", 9, 1, b"ne\nthree\n")]
    assert seen(await pieces(client, ref, tail=1)) == [("stdout", 12, 4, b"three\n")]
    assert seen(await pieces(client, ref, 18)) == seen(await pieces(client, ref, 99)) == []
    assert b"".join(record.data for record in client.logs(ref)) == b"one\ntwo\none\nthree\n"
    with pytest.raises(NotFound, match="no such sandbox: nope"):
        await pieces(client, "nope")
    with pytest.raises(Unavailable, match="the node does not answer"):
        [piece async for piece in printed(client.home.socket("nobody"), ref, 0, follow=False)]

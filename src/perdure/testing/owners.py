"""A node on TCP, with sandboxes of several owners and the tokens of who looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perdure.client.node import NodeClient
from perdure.execution.sandboxes.record import KeptSnapshot
from perdure.formats.manifest import Snapshot
from perdure.node.tokens import Scope, Tokens
from perdure.testing.outside import OutsideNode, outside_node
from perdure.testing.sandboxes import sleeping
from perdure.testing.snapshots import BLOCKS, Bench, block, blocks_of
from perdure.testing.tinynodes import BOX, new_home, root_tar

HERS = "aeaeaeaeaeae"


class World(OutsideNode):
    """``box`` is of nobody in particular, ``hers`` of the token ``ann``; both sleep."""

    ann: str
    bob: str
    reader: str
    admin: str
    of_box: Snapshot
    of_hers: Snapshot


@contextmanager
def owners_node(folder: Path) -> Iterator[World]:
    """It runs, and ends afterwards."""
    home = new_home(folder)
    bench = Bench(home.root)
    tokens = Tokens(home.root / "tokens.json")
    ann, ann_text = tokens.create("ann", Scope.OWN, None)
    template = bench.template(blocks_of([1] * BLOCKS))
    made = []
    for number, (sandbox_id, name, owner) in enumerate(((BOX, "box", ""), (HERS, "hers", ann.id))):
        snapshot = bench.capture(template, {number: block(7 + number)}, blocks_of(range(9)), sandbox_id=sandbox_id)
        facts = {"template": template.name, "template_digest": template.digest, "owner": owner}
        kept = [KeptSnapshot(info=snapshot.info())]
        sleeping(home.sandboxes, sandbox_id, name, [snapshot], snapshots=kept, **facts)
        made.append(snapshot)
    with outside_node(home) as node:
        node.client.import_image("tiny", root_tar())
        here = World(node.home, node.client, node.host, node.port, node.fingerprint)
        more = {
            "ann": ann_text,
            "bob": here.token("own", "bob"),
            "reader": here.token("read", "reader"),
            "admin": here.token("all", "admin"),
            "of_box": made[0],
            "of_hers": made[1],
        }
        for name, value in more.items():
            object.__setattr__(here, name, value)
        yield here


@contextmanager
def tidied(world: World) -> Iterator[None]:
    """What is created meanwhile is removed afterwards."""
    yield
    for info in world.client.list():
        if info.id not in (BOX, HERS):
            world.client.remove(info.id, force=True)


def names(client: NodeClient) -> set[str]:
    return {info.name for info in client.list()}

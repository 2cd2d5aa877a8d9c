"""The tree of snapshots: lines, forks, parents that are gone or were compacted."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.execution.snapshots.care import tree
from perdure.formats.manifest import Config, Descriptor, Snapshot, Space
from perdure.testing.snapshots import facts

BLOB = Descriptor(media_type="", digest="sha256:" + "0" * 64, size=1)


def snapshot(name: str, parent: str | None = None, sandbox: str = "a", created: float = 0.0, **more: Any) -> Snapshot:
    config = Config(
        version=1,
        sandbox_id=sandbox,
        created=created,
        template="warm",
        template_digest="",
        facts=facts(),
        image_digest="",
        memory_size=4096,
        disk_size=4096,
        parent=parent,
        memory_bytes=100,
        disk_bytes=20,
        state_bytes=3,
    )
    space = Space(size=4096, layers=[], map=BLOB)
    return Snapshot(digest=name, config=msgspec.structs.replace(config, **more), memory=space, disk=space, state=BLOB)


def drawn(*snapshots: Snapshot) -> list[tuple[str, int, bool]]:
    return [(node.name, node.depth, node.branch) for node in tree.grow(snapshots)]


def test_a_line_stays_in_its_column_and_forks_leave_it() -> None:
    found = drawn(
        snapshot("3", "2", created=3),
        snapshot("f2", "f1", "fork", created=9),
        snapshot("1", created=1),
        snapshot("g1", "1", "other fork", created=5),
        snapshot("2", "1", created=2),
        snapshot("f1", "1", "fork", created=4),
    )
    assert found == [
        ("warm", 0, False),
        ("1", 1, True),
        ("f1", 2, True),
        ("f2", 2, False),
        ("g1", 2, True),
        ("2", 1, False),
        ("3", 1, False),
    ]


def test_a_node_says_what_it_is() -> None:
    made = snapshot("1", sandbox="a", created=7.0)
    _, node = tree.grow([made], names={"a": "box"}, tags={"1": ["v2", "v1"]})
    assert (node.parent, node.sandbox_id, node.sandbox_name, node.created) == ("warm", "a", "box", 7.0)
    assert (node.stored_bytes, node.tags, node.lost_parent) == (123, ["v1", "v2"], "")


def test_a_parent_that_is_gone() -> None:
    nodes = tree.grow([snapshot("2", "1")])
    assert [(node.name, node.depth, node.parent, node.lost_parent) for node in nodes] == [
        ("warm", 0, "", ""),
        ("2", 1, "warm", "1"),
    ]


def test_a_compacted_snapshot_stands_where_the_old_one_was() -> None:
    nodes = tree.grow([snapshot("1"), snapshot("new", "1", replaces=["old", "older"]), snapshot("3", "older")])
    assert [(node.name, node.depth, node.lost_parent) for node in nodes] == [
        ("warm", 0, ""),
        ("1", 1, ""),
        ("new", 1, ""),
        ("3", 1, ""),
    ]


def test_templates_each_have_a_tree() -> None:
    assert drawn(snapshot("1"), snapshot("2", template="cold")) == [
        ("cold", 0, False),
        ("2", 1, True),
        ("warm", 0, False),
        ("1", 1, True),
    ]
    assert drawn() == []


def test_a_line_of_any_length() -> None:
    count = 5000
    line = [snapshot(str(number), str(number - 1) if number else None, created=number) for number in range(count)]
    nodes = tree.grow(line)
    assert [node.name for node in nodes[1:]] == [str(number) for number in range(count)]
    assert {node.depth for node in nodes[1:]} == {1}
    assert msgspec.json.encode(nodes)

"""What the commands of ``fcrun snapshot`` print, from given values."""

from __future__ import annotations

import time

from perdure.cli.fcrun.snapshot_commands import explain, tree
from perdure.model import MemoryUse, ProcessMemory
from perdure.reports import Explanation, LayerUse, SpaceUse, TreeNode, WorkingSetUse


def node(name: str, depth: int, branch: bool, **more: object) -> TreeNode:
    values = {"sandbox_name": "box", "created": time.time() - 7200, "stored_bytes": 14_200_000} | more
    return TreeNode(kind="snapshot", name=name, depth=depth, branch=branch, **values)  # type: ignore[arg-type]


def template(name: str) -> TreeNode:
    return TreeNode(kind="template", name=name)


def test_a_tree_with_forks_of_forks() -> None:
    nodes = [
        template("warm"),
        node("a", 1, True),
        node("f1", 2, True),
        node("f1x", 3, True),
        node("f2", 2, False),
        node("g", 2, True),
        node("b", 1, False),
        node("z", 1, True),
        node("y", 2, True),
        node("w", 1, False),
        template("cold"),
        node("k", 1, True),
    ]
    assert [line[:30].rstrip() for line in tree.draw(nodes)] == [
        "template warm",
        "├─ a  box",
        "│  ├─ f1  box",
        "│  │  ├─ f1x  box",
        "│  │  f2  box",
        "│  ├─ g  box",
        "│  b  box",
        "└─ z  box",
        "   ├─ y  box",
        "   w  box",
        "template cold",
        "└─ k  box",
    ]


def test_a_line_of_the_tree_fits_and_says_all() -> None:
    digest = "sha256:" + "ab" * 32
    (plain,) = tree.draw([node(digest, 1, True, lost_parent="sha256:" + "cd" * 32, tags=["v1"])])
    assert plain.startswith("└─ abababababab  box  v1  (its parent cdcdcdcdcdcd is gone)")
    assert plain.endswith("14.2MB  2 hours ago")
    (gone,) = tree.draw([node(digest, 1, True, sandbox_name="", sandbox_id="0123456789ab")])
    assert "0123456789ab (gone)" in gone
    deep = list(tree.draw([node(digest, depth, True, sandbox_name="n" * 40) for depth in range(1, 30)]))
    assert all(len(line) <= 100 for line in deep)
    assert all("14.2MB" in line for line in deep)


def test_explain_names_every_part() -> None:
    layer = LayerUse(
        digest="sha256:" + "ab" * 32,
        stored_bytes=5_000_000,
        frames=170,
        blocks=2700,
        live_blocks=1350,
        live_bytes=5_530_000,
        live_stored_bytes=2_400_000,
        dead_bytes=5_530_000,
        dead_stored_bytes=2_600_000,
    )
    found = Explanation(
        digest="sha256:" + "cd" * 32,
        memory=SpaceUse(
            size_bytes=512 << 20,
            zero_bytes=400 << 20,
            template_bytes=50 << 20,
            layers=[layer],
            duplicate_bytes=81_920,
            map_bytes=2000,
        ),
        disk=SpaceUse(size_bytes=4 << 30, zero_bytes=4 << 30, template_bytes=0, layers=[]),
        state_bytes=12_000,
        stored_bytes=5_012_000,
        total_bytes=9_000_000,
        own_bytes=4_000_000,
        working_set=WorkingSetUse(
            blocks=900, zero_bytes=4096, template_bytes=8192, layer_bytes=3_674_112, frames=60, frame_bytes=3_900_000,
            frame_stored_bytes=1_200_000, reads=17,
        ),
        compaction_due=True,
        memory_use=MemoryUse(
            total_kib=500_000, free_kib=400_000, page_cache_kib=40_000, shared_kib=100, anonymous_kib=50_000,
            kernel_kib=9000, processes=[ProcessMemory(pid=120, name="python3", anonymous_kib=45_000)],
        ),
    )  # fmt: skip
    lines = list(explain.text(found))
    assert all(len(line) <= 100 for line in lines)
    text = "\n".join(lines)
    for words in (
        "its capture stored 5.01MB; a restore needs 9MB; removing it alone would free 4MB",
        "memory  537MB: 419MB zeros, 52.4MB template",
        "abababababab    5.53MB     2.4MB    5.53MB     2.6MB     170",
        "disk  4.29GB: 4.29GB zeros",
        "device state  12kB",
        "working set  900 blocks: 4.1kB zeros, 8.19kB template",
        "3.67MB in 60 frames (1.2MB, 3.9MB decompressed) in 17 pieces",
        "51.2MB processes, 41MB page cache, 9.22MB kernel",
        "   120  python3             46.1MB",
        "fcrun snapshot compact cdcdcdcdcdcd",
    ):
        assert words in text, words

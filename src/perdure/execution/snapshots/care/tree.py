"""What was made from what: templates, the snapshots over them, and forks as branches. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from perdure.formats.manifest import Snapshot
from perdure.reports import TreeNode


def grow(
    snapshots: Iterable[Snapshot],
    *,
    names: Mapping[str, str] | None = None,
    tags: Mapping[str, Iterable[str]] | None = None,
) -> list[TreeNode]:
    """One tree per template, in the order in which it is drawn, older branches first.

    names: what the sandboxes (ids) are called; tags: of each snapshot (digest). A compacted snapshot stands where the
    one was that it replaces. One whose parent is gone stands on the template, and says so.
    """
    every = {snapshot.digest: snapshot for snapshot in snapshots}
    stands_for = {digest: digest for digest in every}
    for snapshot in every.values():
        stands_for |= {digest: snapshot.digest for digest in snapshot.config.replaces if digest not in every}
    children: dict[str, list[Snapshot]] = {}
    parents: dict[str, str] = {}
    for snapshot in sorted(every.values(), key=lambda one: (one.config.created, one.digest)):
        parent = stands_for.get(snapshot.config.parent or "", snapshot.config.template)
        parents[snapshot.digest] = parent
        children.setdefault(parent, []).append(snapshot)
    found: list[TreeNode] = []
    for template in sorted(set(children) - set(every)):
        found.append(TreeNode(kind="template", name=template))
        todo = [(snapshot, 1, True) for snapshot in reversed(children[template])]
        while todo:
            snapshot, depth, branch = todo.pop()
            config = snapshot.config
            found.append(
                TreeNode(
                    kind="snapshot",
                    name=snapshot.digest,
                    depth=depth,
                    branch=branch,
                    parent=parents[snapshot.digest],
                    lost_parent=config.parent if config.parent and config.parent not in stands_for else "",
                    sandbox_id=config.sandbox_id,
                    sandbox_name=(names or {}).get(config.sandbox_id, ""),
                    created=config.created,
                    stored_bytes=snapshot.info().stored_bytes,
                    tags=sorted((tags or {}).get(snapshot.digest, ())),
                )
            )
            following = children.get(snapshot.digest, [])
            if following:
                own = [one for one in following if one.config.sandbox_id == config.sandbox_id]
                line = (own or following)[-1]  # the newest of its own sandbox is how its line goes on
                todo.append((line, depth, False))
                todo += [(one, depth + 1, True) for one in reversed(following) if one is not line]
    return found

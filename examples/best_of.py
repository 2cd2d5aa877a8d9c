"""Best of N: one run up to a decision, then a fork for each way to decide; the best one is kept, the others end.

python examples/best_of.py owls

The facts are asked for once, whatever N is: the forks share the log up to the decision, and their machines go on from
the snapshot that the run sleeps in there. Docs: docs/time-travel.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure import Context, agent

if TYPE_CHECKING:
    from perdure.client.server import ServerClient

WAYS = ("as a headline", "as advice to a child", "in the words of a sailor")


@agent(memory_mib=512)
def slogan(ctx: Context, topic: str) -> str:
    facts = ctx.chat(f"In one sentence: what is special about {topic}?", max_tokens=60).text
    way = ctx.wait_for("way")  # the decision
    draft = ctx.chat(f"{facts}\n\nSay this {way}, in one line.", max_tokens=40).text
    verdict = ctx.approval("Keep this one?", show={"way": way, "draft": draft})
    return draft if verdict.approved else ""


def best_of(server: ServerClient, run: str, ways: Sequence[str], score: Callable[[str], float]) -> dict[str, Any]:
    """Fork ``run``, which waits for the signal ``way``, once for each of ``ways``; keep the fork whose draft has the
    best score and cancel the others, and the run itself, which was only there to be forked."""
    forks = server.fork(run, count=len(ways), name=f"{run}-way")
    for fork, way in zip(forks, ways, strict=True):
        server.signal(fork.id, "way", way)
    drafts = {fork.id: waits_for(server, fork.id, "approval")["show"] for fork in forks}
    best = max(drafts, key=lambda fork: score(drafts[fork]["draft"]))
    server.approve(best, approved=True, by="best_of")
    for other in [run, *(fork for fork in drafts if fork != best)]:
        server.cancel(other, reason=f"{best} is kept", force=True)
    return {"run": best, "way": drafts[best]["way"], "result": server.result(best)}


def waits_for(server: ServerClient, run: str, kind: str) -> dict[str, Any]:
    """The wait of a run, once it waits for something of this kind."""
    for entry in server.entries(run, follow=True):
        if entry.kind == "wait.started" and entry.payload["wait"]["kind"] == kind:
            wait: dict[str, Any] = entry.payload["wait"]
            return wait
    raise RuntimeError(f"run {run} ended without waiting for a {kind}")


def main(topic: str) -> None:
    from perdure.cli.perdure._image import ensure_default
    from perdure.client.server import ServerClient

    server = ServerClient()
    source = Path(__file__)
    run = server.start(
        source=source.read_text(), file=source.name, function="slogan", input={"topic": topic}, image=ensure_default()
    )
    waits_for(server, run.id, "signal")
    kept = best_of(server, run.id, WAYS, score=len)
    print(f"{kept['way']}: {kept['result']}\n(run {kept['run']}; 'perdure tree {run.id}' shows them all)")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "owls")

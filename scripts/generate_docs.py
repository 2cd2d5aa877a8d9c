"""Write the pages under docs/reference that are drawn from the code: both command lines and the state tables.

With ``--check`` nothing is written: a page that differs from the code is named, and the exit status is 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

os.environ["COLUMNS"] = "100"  # argparse wraps at the terminal's width
os.environ["NO_COLOR"] = "1"

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
HEADER = "<!-- Written by `make docs` from the code; do not edit. -->\n\n"


def commands_page(program: ModuleType, title: str, intro: str) -> str:
    """One page for a command line: every command's help as it prints it."""
    page = [HEADER, f"# {title}\n\n{intro}\n"]
    for name, text in program.PROGRAM.pages():
        page.append(f"\n## {name}\n\n```text\n{text.rstrip()}\n```\n")
    return "".join(page)


def states_page(tables: Sequence[tuple[str, str, Sequence[tuple[str, str, str]]]]) -> str:
    """One page with a diagram of each state table: arrows of (state, event or "", new state)."""
    page = [
        HEADER,
        "# States\n\nDrawn from the tables in the code; an arrow that is not here raises `illegal-transition`.\n",
    ]
    for title, module, arrows in tables:
        page.append(f"\n## {title}\n\nFrom `{module}`.\n\n```mermaid\nstateDiagram-v2\n")
        page.extend(
            f"    {state} --> {target}" + (f": {event}\n" if event else "\n") for state, event, target in arrows
        )
        page.append("```\n")
    return "".join(page)


def pages() -> dict[Path, str]:
    """The text of each generated page, by its path."""
    from perdure.cli import fcrun, perdure
    from perdure.execution.machine import states as machine_states
    from perdure.execution.sandboxes import states as sandbox_states
    from perdure.model import RunState
    from perdure.runs import states as run_states

    runs = [(str(state), "", str(new)) for state, targets in run_states.ARROWS.items() for new in targets]
    runs += [(str(state), "rewind", str(RunState.RECOVERING)) for state in sorted(run_states.REWINDS)]
    sandboxes = [(str(state), event, str(new)) for (state, event), new in sandbox_states.TRANSITIONS.items()]
    machines = [(str(state), str(event), str(new)) for (state, event), new in machine_states.ARROWS.items()]
    tables = [
        ("Run", "perdure.runs.states", runs),
        ("Sandbox", "perdure.execution.sandboxes.states", sandboxes),
        ("Machine", "perdure.execution.machine.states", machines),
    ]
    docker = "Sandboxes that last: docker's words, for Firecracker microVMs."
    return {
        REFERENCE / "fcrun.md": commands_page(fcrun, "fcrun", docker),
        REFERENCE / "perdure.md": commands_page(perdure, "perdure", "Durable agents."),
        REFERENCE / "states.md": states_page(tables),
    }


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if check:
            print(f"{path} differs from the code; run: make docs", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages()[path])
            print(path)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

"""``--restart``: which sandboxes are started again, on their files, when they have ended by themselves.

As docker: ``on-failure[:N]`` after an exit status that is not 0 (at most N times in a row) or the death of the
machine; ``always`` and ``unless-stopped`` after any end; none of them after a stop or kill. When the node starts, what
ended while there was none is looked at as well, and ``always`` then starts also what was stopped.

The first start comes after FIRST_S, each further one after twice as long, up to MOST_S; for a sandbox that ran for
SETTLED_S they begin anew. A start that fails, or is refused, has not run at all. One that somebody asked for, and that
failed, is not tried again: they have its error.
"""

from __future__ import annotations

import re

from perdure.errors import InvalidValue
from perdure.execution.sandboxes.record import Record
from perdure.model import SandboxSpec, SandboxState

FIRST_S = 0.1
MOST_S = 60.0
SETTLED_S = 10.0
WISHED = ("stopped", "killed")  # causes of an end that somebody asked for
START_FAILED = "start-failed"  # the cause where its main process never was
_POLICY = re.compile(r"|no|always|unless-stopped|on-failure(:\d{1,9})?")


def check(spec: SandboxSpec) -> None:
    """Raises InvalidValue."""
    if not _POLICY.fullmatch(spec.restart):
        raise InvalidValue(
            f"restart is {spec.restart!r}", hint="It must be no, on-failure, on-failure:N, always or unless-stopped."
        )
    if spec.restart not in ("", "no") and spec.auto_remove:
        raise InvalidValue("a sandbox that is removed when it exits cannot be started again", hint="--rm or --restart")


def due(record: Record, *, node_starts: bool = False) -> bool:
    """Whether a sandbox that has exited is to be started again."""
    policy, _, most = record.spec.restart.partition(":")
    if policy in ("", "no") or record.spec.auto_remove or record.state is not SandboxState.EXITED:
        return False
    if record.cause in WISHED:
        return node_starts and policy == "always"
    if record.cause == START_FAILED and not record.restarts:
        return False
    if policy == "on-failure":
        return record.exit_status != 0 and (not most or in_a_row(record) < int(most))
    return True


def in_a_row(record: Record) -> int:
    """How often it was started again without having run for long."""
    if record.started is None or record.finished is None:
        return record.restarts  # it did not run at all
    return 0 if record.finished - record.started >= SETTLED_S else record.restarts


def delay_s(restarts: int) -> float:
    """Before the next start of one that was started so often in a row."""
    return float(min(FIRST_S * 2 ** min(restarts, 32), MOST_S))

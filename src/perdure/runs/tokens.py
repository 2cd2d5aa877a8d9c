"""Where the machines of runs send their calls, and the tokens by which they are known: one for each epoch of a run.

A program inside has a *key*, too, which the SDKs of providers want to have one of. It is of its run and worth nothing
anywhere else: who a call is of is known by its machine's token.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from perdure.errors import StaleEpoch, Unauthorized
from perdure.model import Call, CallsEndpoint
from perdure.runs.record import Record

KEY = "perdure-run-"  # how the key of a run begins: others are no concern of ours
KEY_VARIABLES = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")


class Tokens:
    """secret: tokens are made with it, so it outlives the server."""

    def __init__(self, calls_url: str, secret: bytes) -> None:
        self._calls_url = calls_url
        self._secret = secret

    def endpoint(self, run_id: str, epoch: int) -> CallsEndpoint:
        """Where the machine of an epoch of a run sends its calls."""
        return CallsEndpoint(url=self._calls_url, run_id=run_id, epoch=epoch, token=self._token(run_id, epoch))

    def check(self, call: Call, token: str) -> None:
        """Raises StaleEpoch: it is not the token of the epoch that the call is of."""
        if not hmac.compare_digest(token, self._token(call.run_id, call.epoch)):
            raise StaleEpoch(f"a call for run {call.run_id} has a wrong token", hint="This machine is to end.")

    def _token(self, run_id: str, epoch: int) -> str:
        return hmac.new(self._secret, f"{run_id}/{epoch}".encode(), hashlib.sha256).hexdigest()


def new_key() -> str:
    """A key for the programs of a new run. Its record keeps it, as the memory of its machine and of its forks does,
    whichever server has the run then."""
    return KEY + secrets.token_hex(16)


def keys(record: Record) -> dict[str, str]:
    """The variables that a program inside finds the run's key in; of a run of before, none."""
    return dict.fromkeys(KEY_VARIABLES, record.guest_key) if record.guest_key else {}


def check_key(record: Record, call: Call) -> None:
    """Raises Unauthorized: what it shows is the key of another run. No key, or any other, is as good as the run's own:
    the call came from its own machine."""
    shown = (call.headers.get("x-api-key", ""), call.headers.get("authorization", "").removeprefix("Bearer "))
    for key in shown:
        if key.startswith(KEY) and not hmac.compare_digest(key.encode(), record.guest_key.encode()):
            hint = "Leave OPENAI_API_KEY and ANTHROPIC_API_KEY as this run finds them."
            raise Unauthorized("this is the key of another run, and worth nothing here", hint=hint)

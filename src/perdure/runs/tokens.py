"""Where the machines of runs send their calls, and the tokens by which they are known: one for each epoch of a run."""

from __future__ import annotations

import hashlib
import hmac

from perdure.errors import StaleEpoch
from perdure.model import Call, CallsEndpoint


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

"""The whole error tree: stable codes, exit statuses, and what to do next.

    PerdureError
    ├── InvalidValue                 the caller's input is wrong
    │   ├── ImageInvalid             an image archive that is not one, or that plays tricks
    │   ├── SnapshotInvalid          a layer or manifest that does not verify
    │   ├── AgentInvalid             an agent file that does not import, or names no agent
    │   ├── WrongMethod              a path of an API that does not know this method
    │   └── TooLarge                 more bytes than a request may have
    ├── NotFound                     no such sandbox, image, run, wait …
    ├── Conflict                     the thing is not in a state that allows this
    │   ├── IllegalTransition        a state table has no such arrow
    │   ├── LogConflict              compare-and-set lost: another writer appended first
    │   ├── StaleEpoch               a former owner of the run tried to act
    │   ├── Cancelled                the run is to end: its program may clean up
    │   ├── VersionMismatch          a run and what would go on with it are not of one version
    │   └── AlreadyRunning           a daemon already serves this state folder
    ├── Unsupported                  this machine or version cannot do it
    ├── NoRights                     root or a group is missing, or a token's scope is too small
    │   └── Unauthorized             no token, or none that is valid
    ├── NoSpace                      the disk is full
    ├── NoRoom                       the node's memory, or its number of machines, allows no more of them
    ├── AssetTampered                a downloaded file does not have its pinned digest
    ├── TooSlow                      a request whose bytes did not come in time
    ├── Unavailable                  a daemon, node or provider does not answer
    │   └── LeaseLost                this server does not own the run (any more): another one goes on with it
    ├── CommandNotFound              (127) no such program in the image
    ├── CommandNotExecutable         (126) it is there, but cannot be invoked
    ├── MachineFailed                Firecracker, keeper or emulated host died or refused
    ├── GuestFailed                  guestd refused or does not answer
    ├── ProviderFailed               a model provider refused or broke
    ├── OverBudget                   a run has spent what it may on models
    ├── StepFailed                   a step of an agent raised, now or before it was answered from the log
    ├── ChildFailed                  a run that an agent started failed, or was cancelled
    └── ProtocolError                bytes on a wire or on disk that break their format

The code of an error is the same in HTTP bodies, in ``--format json`` and in Python. ``exit_status`` is that of the
``perdure`` command; ``fcrun`` follows docker: 125 for its own failure, 126 and 127 as above.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing takes long to import below the dotted line, and nothing here needs it to run
if TYPE_CHECKING:
    from typing import Any, ClassVar


class PerdureError(Exception):
    """Base of every error raised on purpose.

    ``message`` says what was wrong and where; ``hint`` says what to do about it (may be empty); ``details`` are
    JSON values for programs.
    """

    code: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def to_json(self) -> dict[str, Any]:
        """The wire form: ``{"code", "message", "hint", "details"}``."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "details": self.details}


class InvalidValue(PerdureError):
    code = "invalid-value"
    exit_status = 2
    http_status = 400


class ImageInvalid(InvalidValue):
    code = "image-invalid"
    exit_status = 1


class SnapshotInvalid(InvalidValue):
    code = "snapshot-invalid"
    exit_status = 1
    http_status = 422


class AgentInvalid(InvalidValue):
    code = "agent-invalid"


class WrongMethod(InvalidValue):
    code = "wrong-method"
    http_status = 405


class TooLarge(InvalidValue):
    code = "too-large"
    http_status = 413


class NotFound(PerdureError):
    code = "not-found"
    http_status = 404


class Conflict(PerdureError):
    code = "conflict"
    http_status = 409


class IllegalTransition(Conflict):
    code = "illegal-transition"


class LogConflict(Conflict):
    code = "log-conflict"


class StaleEpoch(Conflict):
    code = "stale-epoch"


class Cancelled(Conflict):
    code = "cancelled"


class VersionMismatch(Conflict):
    code = "version-mismatch"


class AlreadyRunning(Conflict):
    code = "already-running"


class Unsupported(PerdureError):
    code = "unsupported"
    http_status = 501


class NoRights(PerdureError):
    code = "no-rights"
    http_status = 403


class Unauthorized(NoRights):
    code = "unauthorized"
    http_status = 401


class NoSpace(PerdureError):
    code = "no-space"
    http_status = 507


class NoRoom(PerdureError):
    code = "no-room"
    http_status = 507


class AssetTampered(PerdureError):
    code = "asset-tampered"


class TooSlow(PerdureError):
    code = "too-slow"
    http_status = 408


class Unavailable(PerdureError):
    code = "unavailable"
    http_status = 503


class LeaseLost(Unavailable):
    code = "lease-lost"


class CommandNotFound(PerdureError):
    code = "command-not-found"
    exit_status = 127
    http_status = 400


class CommandNotExecutable(PerdureError):
    code = "command-not-executable"
    exit_status = 126
    http_status = 400


class MachineFailed(PerdureError):
    code = "machine-failed"


class GuestFailed(PerdureError):
    code = "guest-failed"


class ProviderFailed(PerdureError):
    code = "provider-failed"
    http_status = 502


class OverBudget(PerdureError):
    code = "over-budget"
    http_status = 402


class StepFailed(PerdureError):
    code = "step-failed"


class ChildFailed(PerdureError):
    code = "child-failed"


class ProtocolError(PerdureError):
    code = "protocol-error"


def in_words(body: dict[str, Any]) -> str:
    """The message of such a body; of an exception of an agent's own with its type, as Python says it."""
    details, message = body.get("details"), str(body.get("message", ""))
    found = body.get("type") or (details.get("type") if isinstance(details, dict) else "")
    if body.get("code") != "agent-failed" or not found:
        return message
    return f"{found}: {message}" if message else str(found)


def _tree(base: type[PerdureError]) -> dict[str, type[PerdureError]]:
    found = {base.code: base}
    for child in base.__subclasses__():
        found = _tree(child) | found  # a kind of an error that has no code of its own is never meant
    return found


def from_json(body: dict[str, Any]) -> PerdureError:
    """The error that ``to_json`` wrote; an unknown code becomes a plain ``PerdureError``."""
    kind = _tree(PerdureError).get(str(body.get("code")), PerdureError)
    details = body.get("details")
    error = kind(str(body.get("message", "unknown error")), hint=str(body.get("hint", "")))
    error.details = dict(details) if isinstance(details, dict) else {}
    return error

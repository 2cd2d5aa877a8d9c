"""Who we are to a registry: what ``fcrun login`` (or docker, podman, skopeo) keeps in Docker's configuration file."""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from perdure.errors import InvalidValue, NoRights

HELPER_TIMEOUT_S = 30.0
IDENTITY = "<token>"  # in place of a user: the password is a token that a registry's token service gave for it


def config_file() -> Path:
    """Docker's configuration file, of this user."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


def credentials(host: str) -> tuple[str, str] | None:
    """(user, password) for a registry; None: nothing is kept for it.

    Of a credential helper (``credHelpers``, ``credsStore``) the program ``docker-credential-NAME`` is asked. Raises
    InvalidValue (the file does not read), NoRights (the helper fails).
    """
    path = config_file()
    try:
        config = json.loads(path.read_bytes())
        entry = config.get("auths", {}).get(host)
        helper = config.get("credHelpers", {}).get(host) or (
            config.get("credsStore") if not _is_filled(entry) else None
        )
        if helper:
            return _asked(str(helper), host)
        if not _is_filled(entry):
            return None
        if entry.get("identitytoken"):
            return IDENTITY, str(entry["identitytoken"])
        if entry.get("username") and entry.get("password"):
            return str(entry["username"]), str(entry["password"])
        user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        return user, password.rstrip("\0")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError, KeyError, binascii.Error) as error:
        raise InvalidValue(f"{path} does not read: {error!r}", hint=f"Log in again: fcrun login {host}") from None


def keep(host: str, user: str, password: str) -> str:
    """From now on we are this user to that registry; where it was written: a helper's name, or the file's path.

    Raises InvalidValue, NoRights as ``credentials`` does.
    """
    config = _read()
    if helper := _helper(config, host):
        said = json.dumps({"ServerURL": host, "Username": user, "Secret": password})
        _run(helper, "store", said, host)
        _entries(config)[host] = {}
        _write(config)
        return f"docker-credential-{helper}"
    _entries(config)[host] = {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}
    _write(config)
    return str(config_file())


def forget(host: str) -> bool:
    """From now on we are nobody to that registry; False: we were not before. Raises as ``keep`` does."""
    config = _read()
    helper = _helper(config, host)
    was_known = _entries(config).pop(host, None) is not None
    if helper:
        was_known |= _asked(helper, host) is not None
        _run(helper, "erase", host, host)
    if was_known:
        _write(config)
    return was_known


def _read() -> dict[str, Any]:
    path = config_file()
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidValue(f"{path} does not read: {error!r}", hint="Mend it, or move it away.") from None
    if not isinstance(found, dict) or not isinstance(found.get("auths", {}), dict):
        raise InvalidValue(f"{path} is not docker's configuration", hint="Mend it, or move it away.")
    return found


def _entries(config: dict[str, Any]) -> dict[str, Any]:
    entries: dict[str, Any] = config.setdefault("auths", {})
    return entries


def _helper(config: dict[str, Any], host: str) -> str:
    named = config.get("credHelpers")
    return str((named.get(host) if isinstance(named, dict) else "") or config.get("credsStore") or "")


def _write(config: dict[str, Any]) -> None:
    """Nobody else may read it, and no moment has half of it."""
    path = config_file().resolve()  # it may be a link
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(json.dumps(config, indent="\t") + "\n")
        new.rename(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise InvalidValue(f"{path} cannot be written: {error.strerror}", hint="Set DOCKER_CONFIG.") from error


def _is_filled(entry: Any) -> bool:
    """Whether a login is in the file itself, not with a helper."""
    return bool(entry) and bool(
        entry.get("auth") or entry.get("identitytoken") or (entry.get("username") and entry.get("password"))
    )


def _asked(helper: str, host: str) -> tuple[str, str] | None:
    """The protocol of docker-credential-helpers: the host on standard input, JSON on standard output."""
    said = _run(helper, "get", host, host)
    if said is None:
        return None
    answer = json.loads(said)
    return str(answer["Username"]), str(answer["Secret"])


def _run(helper: str, action: str, said: str, host: str) -> bytes | None:
    """What the helper answers; None: it knows nothing of that registry. Secrets go by its standard input only."""
    program = f"docker-credential-{helper}"
    try:
        run = subprocess.run(
            [program, action], input=said.encode(), capture_output=True, timeout=HELPER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoRights(f"{program} does not run: {error}", hint="Docker's config.json names it. Install it.") from None
    if run.returncode:
        if b"credentials not found" in run.stdout + run.stderr:
            return None
        words = (run.stderr or run.stdout).decode(errors="replace").strip()[:200]
        raise NoRights(f"{program} fails: {words}", hint=f"Log in again: fcrun login {host}")
    return run.stdout

"""Who we are to a registry: what ``docker login`` (or podman, skopeo, oras) keeps in Docker's configuration file."""

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


def credentials(host: str) -> tuple[str, str] | None:
    """(user, password) for a registry; None: nothing is kept for it.

    Of a credential helper (``credHelpers``, ``credsStore``) the program ``docker-credential-NAME`` is asked. Raises
    InvalidValue (the file does not read), NoRights (the helper fails, or has only an identity token).
    """
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
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
        if entry.get("username") and entry.get("password"):
            return str(entry["username"]), str(entry["password"])
        user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        return user, password.rstrip("\0")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError, KeyError, binascii.Error) as error:
        raise InvalidValue(f"{path} does not read: {error!r}", hint=f"Log in again: docker login {host}") from None


def _is_filled(entry: Any) -> bool:
    return bool(entry) and bool(entry.get("auth") or (entry.get("username") and entry.get("password")))


def _asked(helper: str, host: str) -> tuple[str, str] | None:
    """The protocol of docker-credential-helpers: the host on standard input, JSON on standard output."""
    program = f"docker-credential-{helper}"
    try:
        run = subprocess.run(
            [program, "get"], input=host.encode(), capture_output=True, timeout=HELPER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoRights(f"{program} does not run: {error}", hint="Docker's config.json names it. Install it.") from None
    if run.returncode:
        if b"credentials not found" in run.stdout + run.stderr:
            return None
        said = (run.stderr or run.stdout).decode(errors="replace").strip()[:200]
        raise NoRights(f"{program} fails: {said}", hint=f"Log in again: docker login {host}")
    answer = json.loads(run.stdout)
    if answer["Username"] == "<token>":
        raise NoRights(
            f"{program} keeps an identity token for {host}, which is not supported",
            hint="Log in with a user name and a password or access token.",
        )
    return str(answer["Username"]), str(answer["Secret"])

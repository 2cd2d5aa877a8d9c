"""Where the keys of providers come from. They are on the host, and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from perdure.errors import ProviderFailed

COMMAND_S = 30.0  # a password manager may ask its server

_log = logging.getLogger(__name__)


class Key(Protocol):
    """A key that may change while the server lives."""

    async def read(self, *, refused: str = "") -> str:
        """The key. refused: one that is good no more. ``ProviderFailed``: it cannot be had."""
        ...


class FileKey:
    """The first line of a file, read whenever it is needed."""

    def __init__(self, path: Path, where: str) -> None:
        self._path = path
        self._where = where

    async def read(self, *, refused: str = "") -> str:
        try:
            text = self._path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = (isinstance(error, OSError) and error.strerror) or "it is not text"
            raise ProviderFailed(f"{self._where}: the file with its key cannot be read: {why}") from error
        return _first_line(text, self._where)


class CommandKey:
    """The first line that a command prints; it is run when a key is first needed, and when one was refused."""

    def __init__(self, command: Sequence[str], where: str) -> None:
        self._command = command
        self._where = where
        self._key = ""
        self._alone = asyncio.Lock()

    async def read(self, *, refused: str = "") -> str:
        async with self._alone:
            if self._key in ("", refused):  # else somebody else has renewed it meanwhile
                self._key = await self._ask()
            return self._key

    async def _ask(self) -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise ProviderFailed(f"{self._where}: its key_command cannot be run: {error.strerror}") from error
        try:
            told, said = await asyncio.wait_for(process.communicate(), COMMAND_S)
        except TimeoutError:
            raise ProviderFailed(f"{self._where}: its key_command did not end in {COMMAND_S:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            _log.error("%s: key_command: %s", self._where, said.decode(errors="replace").strip())
            hint = "the server's log has what it said"
            message = f"{self._where}: its key_command ended with status {process.returncode}"
            raise ProviderFailed(message, hint=hint)
        return _first_line(told.decode(errors="replace"), self._where)


def _first_line(text: str, where: str) -> str:
    key = next(iter(text.splitlines()), "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ProviderFailed(f"{where}: what its key comes from has none in its first line")
    return key

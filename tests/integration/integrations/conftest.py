"""What the tests here share: a real server, on each database, that programs use as a log."""

from __future__ import annotations

from perdure.testing.logservers import log_server
from perdure.testing.postgres_fixtures import postgres

__all__ = ["log_server", "postgres"]

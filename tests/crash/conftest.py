"""Fixtures: a house that is up, and the provider that its models are asked at; a folder in memory."""

from perdure.testing.house_fixtures import house, provider
from perdure.testing.memory_fixtures import tmp_path

__all__ = ["house", "provider", "tmp_path"]

"""Fixtures: a house that is up, and the provider that its models are asked at."""

from perdure.testing.house_fixtures import house, provider

__all__ = ["house", "provider"]

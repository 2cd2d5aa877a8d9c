"""Fixtures: a house that is up, the provider that its models are asked at, and the API over that house."""

from perdure.testing.house_fixtures import house, provider, served

__all__ = ["house", "provider", "served"]

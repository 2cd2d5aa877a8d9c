"""The provider that a house's models are asked at."""

from perdure.testing.house_fixtures import provider

__all__ = ["provider"]

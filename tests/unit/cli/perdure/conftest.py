"""A person at the command line, and the provider that a house's models are asked at."""

from perdure.testing.desks import desk
from perdure.testing.house_fixtures import provider

__all__ = ["desk", "provider"]

"""A call to a model, as the gateway understands it: in which API, what for, and of whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perdure.errors import InvalidValue
from perdure.gateway import dialects
from perdure.gateway.dialects.dialect import Dialect, Request
from perdure.gateway.providers import Place, Providers
from perdure.gateway.upstream import Question
from perdure.model import Call, JointBudget


@dataclass(frozen=True)
class Asked:
    """``places``: who is asked, and who instead where that one fails. ``joint``: the budgets that it counts in, beside
    its run's."""

    call: Call
    branch: int
    dialect: Dialect
    request: Request
    places: list[Place]
    joint: Sequence[JointBudget] = ()

    @property
    def key(self) -> tuple[str, int, str]:
        return self.call.run_id, self.branch, self.call.key

    @property
    def name(self) -> str:
        """Of the turn, in the world."""
        return f"perdure-{self.call.run_id}-{self.branch}-{self.call.key}"

    @property
    def model(self) -> str:
        """That it is for: the one that it names, or its provider's own."""
        first = self.places[0].provider
        return self.request.model or (first.model if self.dialect.is_known else "")

    def question(self, place: Place) -> Question:
        """What is asked there: the request, byte for byte where it names a model that they have."""
        body = self.call.body
        if place.model or not self.request.model:
            model = place.model or self.model
            body = dialects.naming(body, model) if model and self.dialect.is_known else body
        return Question(self.call, body, self.dialect.name, self.name)


def read(call: Call, branch: int, providers: Providers, joint: Sequence[JointBudget] = ()) -> Asked:
    """Raises ``InvalidValue``, or ``NotFound``: nobody answers that."""
    dialect, path = dialects.of(call), dialects.checked(call)
    request = dialect.request(call.body)
    if isinstance(request, str):
        raise InvalidValue(request, hint=f"see the reference of POST {path} at the provider's")
    return Asked(call, branch, dialect, request, providers.places(request.model, dialect.name), joint)

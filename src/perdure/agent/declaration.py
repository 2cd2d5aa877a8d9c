"""``@agent``: marks a function as an agent and says what machine it wants."""

from __future__ import annotations

from perdure.agent.generic import Returning
from perdure.errors import InvalidValue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, Literal, Protocol, overload

    from perdure.agent.generic import R

    class Mark(Protocol):
        @overload
        def __call__(self, function: Callable[..., Coroutine[Any, Any, R]], /) -> Agent[R]: ...

        @overload
        def __call__(self, function: Callable[..., R], /) -> Agent[R]: ...


DURABILITIES = ("snapshot", "replay")


class Agent(Returning["R"]):
    """A function that can be run durably, and what its run returns. Calling it calls the function."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        image: str,
        memory_mib: int | None,
        vcpus: int | None,
        durability: str,
        policy: dict[str, float],
        version: str = "",
        retry: dict[str, Any] | None = None,
        budget: dict[str, float] | None = None,
    ) -> None:
        if durability not in DURABILITIES:
            raise InvalidValue(f"durability={durability!r} is unknown", hint=f"known are {', '.join(DURABILITIES)}")
        self.function = function
        self.image = image
        self.memory_mib = memory_mib
        self.vcpus = vcpus
        self.durability = durability
        self.policy = policy
        self.version = version
        self.retry = retry or {}
        self.budget = budget or {}
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<agent {self.__name__}>"


if TYPE_CHECKING:  # with its options once more, so that what an author mistypes is found without running it

    @overload
    def agent(function: Callable[..., Coroutine[Any, Any, R]], /) -> Agent[R]: ...

    @overload
    def agent(function: Callable[..., R], /) -> Agent[R]: ...

    @overload
    def agent(
        *,
        image: str = "",
        memory_mib: int | None = None,
        vcpus: int | None = None,
        durability: Literal["snapshot", "replay"] = "snapshot",
        idle_grace_s: float | None = None,
        think_grace_s: float | None = None,
        checkpoint_turns: int | None = None,
        checkpoint_s: float | None = None,
        version: str = "",
        retry: dict[str, Any] | None = None,
        budget: dict[str, float] | None = None,
    ) -> Mark: ...


def agent(
    function: Callable[..., Any] | None = None,
    /,
    *,
    image: str = "",
    memory_mib: int | None = None,
    vcpus: int | None = None,
    durability: str = "snapshot",
    idle_grace_s: float | None = None,
    think_grace_s: float | None = None,
    checkpoint_turns: int | None = None,
    checkpoint_s: float | None = None,
    version: str = "",
    retry: dict[str, Any] | None = None,
    budget: dict[str, float] | None = None,
) -> Any:
    """Mark a function as an agent: ``@agent``, or ``@agent(durability="replay")``.

    image: what its microVM runs ("": what the run is started with); it needs ``python3``, 3.9 or newer.
    memory_mib, vcpus: the machine's size. durability: "snapshot", or "replay": no machine, a process of the server's
    host runs the function, and runs it again from its start after each sleep or loss, with what went through ``ctx``
    answered from the log. version: the author's own name for it, kept with each run. idle_grace_s, think_grace_s: its
    machine sleeps when it only waited, or a model only thought, for so long. checkpoint_turns, checkpoint_s: it is
    captured after so many turns, or seconds of running. retry: attempts in all, by kind of failure:
    ``{"agent-failed": {"attempts": 3}}``. budget: what a run may spend on models: ``{"tokens": 100_000, "calls": 50,
    "usd": 2.5}``. All are literals: they are read before anything runs.
    """

    given = {
        "idle_grace_s": idle_grace_s,
        "think_grace_s": think_grace_s,
        "checkpoint_turns": checkpoint_turns,
        "checkpoint_s": checkpoint_s,
    }
    policy = {name: value for name, value in given.items() if value is not None}

    def mark(function: Callable[..., Any]) -> Agent[Any]:
        return Agent(
            function,
            image=image,
            memory_mib=memory_mib,
            vcpus=vcpus,
            durability=durability,
            policy=policy,
            version=version,
            retry=retry,
            budget=budget,
        )

    return mark if function is None else mark(function)

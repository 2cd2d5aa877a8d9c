"""Agents of Pydantic AI inside an agent's function: ``PerdureDurability`` makes their work steps of the run.

Each request to a model, each call of a tool or of an MCP server is one ``ctx.step``: recorded once, and answered from
the log when the function lives through it again, on either road. The way from one to the next is the framework's own,
which runs again.

This file also goes into guests, beside ``perdure.agent``: it imports that, the errors, and its framework. Facts of the
interface: ``pydantic_ai.durable_exec``, 2.68, and its guide to backends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, TypedDict, cast

from pydantic_ai.agent import EventStreamHandler
from pydantic_ai.capabilities.abstract import WrapRunHandler
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    DurabilityEngineSpec,
    DurableOperationBackend,
    DurableOperationId,
    JournalCallableOperationBackend,
    RoleBasedOperationConfig,
    ToolsetKind,
    conversation_id_from_run_id,
    record_durable_unit,
    replay_scope,
)
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model
from pydantic_ai.run import AgentRunResult
from pydantic_ai.tools import AgentDepsT, RunContext

from perdure.agent import current, tasks
from perdure.agent.tasks import AsyncContext
from perdure.agent.values import Cancelled


class StepConfig(TypedDict, total=False):
    """How its steps are done: the arguments of ``ctx.step`` that are not given are as there."""

    on_doubt: Literal["retry", "ask", "fail"]
    retries: int
    backoff: float | str
    backoff_max: float | str
    retry_on: Any


class _Backend(JournalCallableOperationBackend[StepConfig]):
    """Does each operation as a step."""

    async def execute(
        self,
        *,
        operation_id: DurableOperationId,
        name: str,
        body: Callable[[], Awaitable[object]],
        cache_key: tuple[object, ...],
        config: StepConfig,
    ) -> object:
        has_run = False

        async def operation() -> Any:
            nonlocal has_run
            has_run = True
            return await body()

        context = current.context
        assert isinstance(context, AsyncContext)  # or it is not called: see in_durable_context
        try:
            return await context.step(name, operation, **(config or {}))
        finally:
            record_durable_unit(executed=has_run)


@dataclass(init=False, kw_only=True)
class PerdureDurability(BaseDurabilityCapability[AgentDepsT]):
    """Makes an agent durable where it runs inside an agent's function of Perdure; elsewhere it changes nothing.

    Give it to ``Agent(..., name="...", capabilities=[PerdureDurability()])``, and call ``await agent.run(...)`` in an
    ``async def`` with ``@agent`` above it. models: more models by a name, for ``agent.run(model=name)``. name: what its
    steps begin with (the agent's own name). model, tool, mcp, event, capability: how those steps are done.

    A tool that itself asks the host (``ctx.approval`` …) is to be no step: ``metadata={"perdure": False}``. With a
    ``StepConfig`` there a tool has its own, such as ``{"perdure": {"on_doubt": "ask"}}``.

    What fails in a step is ``StepFailed``, with ``type`` and ``bases`` in its details, as of every step; a tool's
    ``ModelRetry`` and the like are as ever. Results are JSON, 1 MiB at most.
    """

    engine_spec = DurabilityEngineSpec(
        engine_name="Perdure",
        durable_unit_noun="step",
        durable_container_noun="run",
        codec=JSON_CODEC,
        wrapped_toolset_kinds=frozenset({"function", "mcp", "dynamic"}),
        unsupported_runtime_toolset_kinds=frozenset({"function", "mcp", "dynamic"}),
        toolset_lifecycles={"function": "enter-always", "mcp": "enter-in-durable-unit", "dynamic": "enter-never"},
        journal_discovery=True,
        sequential_tools_in_durable_context=False,  # each task has a lane of its own
        tool_config_key="perdure",
        cancellation_error_types=(Cancelled,),
    )

    def __init__(
        self,
        *,
        models: Mapping[str, Model] | None = None,
        event_stream_handler: EventStreamHandler[AgentDepsT] | None = None,
        name: str | None = None,
        model: StepConfig | None = None,
        tool: StepConfig | None = None,
        mcp: StepConfig | None = None,
        event: StepConfig | None = None,
        capability: StepConfig | None = None,
    ) -> None:
        super().__init__(models=models, event_stream_handler=event_stream_handler, name=name)
        self._model, self._event, self._capability = model or {}, event or {}, capability or {}
        self._tools: dict[ToolsetKind, StepConfig] = {"function": tool or {}, "mcp": mcp or {}, "dynamic": tool or {}}

    @property
    def in_durable_context(self) -> bool:
        """Whether this is the coroutine of an agent, and no step of it: steps hold no steps."""
        if current.context is None:
            return False
        if not isinstance(current.context, AsyncContext):
            raise UserError(
                f"{self.name or 'this agent'} runs in a function of Perdure that is no coroutine: its work would be no "
                "steps. Write `async def` under @agent, and `await agent.run(...)`."
            )
        return bool(tasks.place())

    def get_default_run_id(self) -> str | None:
        """The same when it is lived through again."""
        context = current.context
        return f"{context.run_id}:{tasks.place()}" if self.in_durable_context and context is not None else None

    def get_default_conversation_id(self, run_id: str) -> str | None:
        """Follows from the run's id."""
        return conversation_id_from_run_id(run_id) if self.in_durable_context else None

    async def get_run_start_time(self, run_id: str) -> datetime | None:
        """As it was at first: recorded."""
        context = current.context
        if not self.in_durable_context or not isinstance(context, AsyncContext):
            return None
        return datetime.fromtimestamp(await context.now(), timezone.utc)  # noqa: UP017 - guests may have Python 3.10

    async def wrap_run(self, ctx: RunContext[AgentDepsT], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        """Run it; what is only lived through again is not told to telemetry a second time."""
        with replay_scope():
            return await super().wrap_run(ctx, handler=handler)

    def get_durable_operation_backend(self) -> DurableOperationBackend[StepConfig]:
        """Its operations as steps, by the names that Pydantic AI's journals have."""

        def of_tool(operation_id: DurableOperationId, tool: Any, tool_name: str) -> StepConfig | Literal[False]:
            kind: ToolsetKind = getattr(operation_id, "toolset_kind", "mcp")  # instructions are asked of MCP servers
            config = self._build_resolve_tool_config(self._tools[kind])(tool, tool_name)
            return cast("StepConfig | Literal[False]", config)  # it is made of ours

        return _Backend(
            agent_name=self.name,
            default_model_id=self.default_model_id,
            config=RoleBasedOperationConfig(
                model=self._model,
                event=self._event,
                capability=self._capability,
                tool=self._tools["function"],
                resolve_tool=of_tool,
            ),
        )

    def _toolset_base_config(self, kind: ToolsetKind) -> StepConfig:
        return self._tools[kind]

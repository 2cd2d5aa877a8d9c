"""``--health-*`` and ``--stop-*`` as Docker's users type them."""

from __future__ import annotations

import pytest

from perdure.cli.fcrun import _filters, _views, command_module, parser_of
from perdure.cli.fcrun._process import spec_of
from perdure.errors import InvalidValue
from perdure.model import Health, HealthCheck, SandboxInfo, SandboxSpec, SandboxState


def spec(*argv: str) -> SandboxSpec:
    return spec_of(parser_of(command_module("create")).parse_args([*argv, "image"]))


def test_what_is_given() -> None:
    found = spec("--health-cmd", "curl -f x", "--health-interval", "1m30s", "--health-timeout=500ms")
    assert found.health == HealthCheck(test=["CMD-SHELL", "curl -f x"], interval_s=90, timeout_s=0.5)
    found = spec("--health-retries", "5", "--health-start-period", "1h", "--health-start-interval", "2s")
    assert found.health == HealthCheck(retries=5, start_period_s=3600, start_interval_s=2)  # the command is the image's
    assert spec("--no-healthcheck").health == HealthCheck(test=["NONE"])
    found = spec("--stop-signal", "QUIT", "--stop-timeout", "-1")
    assert (found.stop_signal, found.stop_timeout_s, found.health) == ("QUIT", -1, None)
    assert (spec().stop_signal, spec().stop_timeout_s, spec().health) == ("", None, None)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--health-interval", "soon"], "--health-interval: 'soon' is no duration"),
        (["--health-timeout", "5"], "--health-timeout"),
        (["--health-retries", "-1"], "--health-retries"),
        (["--no-healthcheck", "--health-cmd", "x"], "--no-healthcheck conflicts"),
    ],
)
def test_what_cannot_be(argv: list[str], said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        spec(*argv)


def sandbox(status: str) -> SandboxInfo:
    health = Health(status=status) if status else None
    return SandboxInfo(
        id="0" * 12, name=status or "none", spec=SandboxSpec(image="i"), state=SandboxState.RUNNING, created=1,
        started=1, health=health,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "shown"), [("starting", "(health: starting)"), ("healthy", "(healthy)"), ("unhealthy", "(unhealthy)")]
)
def test_ps_shows_it_as_docker_does(status: str, shown: str) -> None:
    told = _views.status(sandbox(status))
    assert told.startswith("Up ") and told.endswith(f" {shown}")


@pytest.mark.parametrize("wanted", ["starting", "healthy", "unhealthy", "none"])
def test_ps_finds_it(wanted: str) -> None:
    everyone = [sandbox(status) for status in ("starting", "healthy", "unhealthy", "")]
    assert [info.name for info in _filters.chosen(everyone, _filters.parse([f"health={wanted}"]))] == [wanted]


def test_ps_knows_no_other_health() -> None:
    with pytest.raises(InvalidValue, match="no health 'fine'"):
        _filters.chosen([sandbox("")], _filters.parse(["health=fine"]))

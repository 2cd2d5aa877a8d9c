"""How a spec and an image's configuration are joined: as Docker joins them."""

from __future__ import annotations

import pytest

from perdure.errors import InvalidValue
from perdure.execution.images.image import ImageConfig
from perdure.execution.sandboxes import workload
from perdure.model import CallsEndpoint, ExecSpec, SandboxSpec

IMAGE = ImageConfig(
    entrypoint=["/entry"], cmd=["serve"], env={"PATH": "/image/bin", "A": "image"}, cwd="/srv", user="app"
)


@pytest.mark.parametrize(
    ("entrypoint", "command", "argv"),
    [
        (None, [], ["/entry", "serve"]),
        (None, ["x", "y"], ["/entry", "x", "y"]),
        (["/other"], [], ["/other"]),
        (["/other"], ["x"], ["/other", "x"]),
        ([], ["x"], ["x"]),
    ],
)
def test_command(entrypoint: list[str] | None, command: list[str], argv: list[str]) -> None:
    assert workload.command(SandboxSpec(image="i", entrypoint=entrypoint, command=command), IMAGE) == argv


def test_no_command_is_an_error_with_advice() -> None:
    with pytest.raises(InvalidValue, match="no command given, and image i has none") as caught:
        workload.command(SandboxSpec(image="i"), ImageConfig())
    assert "fcrun run i COMMAND" in caught.value.hint


def test_environment() -> None:
    env = workload.environment(SandboxSpec(image="i", env={"A": "mine"}), IMAGE, "host1", tty=True)
    assert env == {
        "PATH": "/image/bin",
        "HOSTNAME": "host1",
        "TERM": "xterm",
        "A": "mine",
        "PERDURE_URL": "http://127.0.0.1:4750",
    }


def test_a_calls_endpoint_opens_the_model_door_and_gives_no_secret() -> None:
    calls = CallsEndpoint(url="unix:/x:/v1/calls", run_id="r", epoch=1, token="secret")
    env = workload.environment(SandboxSpec(image="i", calls=calls), ImageConfig(), "h", tty=False)
    assert env["OPENAI_BASE_URL"] == "http://127.0.0.1:4750/v1"
    assert env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:4750"
    assert env["OPENAI_API_KEY"] == env["ANTHROPIC_API_KEY"] == "placeholder"
    assert "secret" not in str(env)


def test_an_exec_inherits_and_overrides() -> None:
    spec = SandboxSpec(image="i", env={"A": "1"}, user="me")
    process = workload.side_process(ExecSpec(command=["ls"], env={"B": "2"}, tty=True, rows=9), spec, IMAGE, "h")
    assert (process.user, process.cwd, process.rows, process.tty) == ("me", "/srv", 9, True)
    assert process.env["A"] == "1"
    assert process.env["B"] == "2"
    with pytest.raises(InvalidValue):
        workload.side_process(ExecSpec(command=[]), spec, IMAGE, "h")

"""The SDKs of OpenAI and Anthropic, as they are, in a microVM that sleeps in the middle of both answers.

Python reads them for minutes where processors are emulated: this runs by `make examples`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient
from perdure.model import RunState
from perdure.testing import distributions, speeches
from perdure.testing.durable_runs import Scripted, scripted

from .conftest import IMAGE, Fcrun

__all__ = ["scripted"]

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not os.environ.get("PERDURE_TEST_EXAMPLES"), reason="this takes minutes: make examples"),
    pytest.mark.skipif(shutil.which("buildah") is None or os.geteuid() != 0, reason="needs root and buildah"),
]
EXAMPLE = Path(__file__).parents[2] / "examples" / "sdks.py"
SDKS = "sdks"
OTHER_PYTHON = "this is another Python"
DOCKERFILE = f"""
FROM {IMAGE}
RUN python3 -c 'import sys; assert sys.version_info[:2] == {sys.version_info[:2]}, "{OTHER_PYTHON}"'
COPY site /usr/lib/python3/dist-packages
"""
DRAFT = speeches.chat_events("Owls ", "hunt ", "by night.")
EDITED = speeches.message_events("They ", "hunt.")
AFTER_OWLS, AFTER_THEY = 1, 8  # events
GRACE_S = 10.0  # until then the program has printed what it heard, also where processors are emulated


@pytest.fixture
def image(fcrun: Fcrun, client: NodeClient, tmp_path: Path) -> Iterator[str]:
    """The tests' image with the SDKs of this process, if the Python in it is the same one."""
    distributions.copy(["openai", "anthropic"], tmp_path / "site")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    built = fcrun("build", "-t", SDKS, str(tmp_path), timeout_s=300)
    if f"AssertionError: {OTHER_PYTHON}" in built.stderr:
        pytest.skip("the image's Python is another one")
    assert built.returncode == 0, built.stderr
    yield SDKS
    for info in client.list():
        client.remove(info.id, force=True)
    client.remove_image(SDKS)


def test_the_sdks_hear_whole_answers_in_whose_middle_their_machine_slept(image: str, scripted: Scripted) -> None:
    says = scripted.provider
    says.acts = [says.streams(DRAFT, hold_after=AFTER_OWLS), says.streams(EDITED, hold_after=AFTER_THEY)]
    command = ["python3", "-c", EXAMPLE.read_text()]
    run = scripted.start(image=image, command=command, memory_mib=512, policy={"think_grace_s": GRACE_S})
    at = 0
    for heard in ("Owls ", "Owls hunt by night.\nThey "):
        at = run.wait_for("run.suspended", after=at).seq
        assert run.server.output(run.id).decode() == heard
        scripted.do(says.go_on)
    info = run.ends()
    assert info.state is RunState.COMPLETED, info
    assert info.result["output"] == "Owls hunt by night.\nThey hunt.\n"
    assert len(says.asked) == info.turns_asked == 2 and info.turns_replayed == info.recoveries == 0
    assert [path.partition("?")[0] for path in says.paths] == ["/v1/chat/completions", "/v1/messages"]
    assert run.is_gone()

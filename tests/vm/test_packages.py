"""What an agent requires goes into its microVM: the wheels of its Python, those of the run's start."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from perdure.cli.perdure import _daemons
from perdure.cli.perdure._image import ensure_default
from perdure.client.node import NodeClient
from perdure.client.server import ServerClient
from perdure.errors import AgentInvalid
from perdure.host.paths import Home
from perdure.testing.packageindex import Index

pytestmark = pytest.mark.vm

SOURCE = """# /// script
# dependencies = ["perdure", "owls"]
# ///
import near
from perdure import Context, agent

@agent
def pick(ctx: Context):
    import owls

    ctx.wait_for("go")
    from feathers.down import SOFT  # not before it was restored
    return [owls.VERSION, SOFT, near.NAME]
"""


@pytest.fixture
def server(home: Home, client: NodeClient, index: Index, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerClient]:
    """A server on the node's home, with an empty log."""
    monkeypatch.setenv("PERDURE_PROVIDER", "openai")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    for path in home.root.glob("perdure.db*"):
        path.unlink()
    _daemons.start_server(home)
    yield ServerClient(home)
    _daemons._stop_server(home)


@pytest.mark.timeout(900)
def test_an_agent_in_a_microvm_imports_what_it_requires(server: ServerClient, index: Index) -> None:
    index.add("owls", "1.0", requires=["feathers", "fur; sys_platform == 'win32'"])
    index.add("feathers", "2.1", {"feathers/__init__.py": "", "feathers/down.py": "SOFT = 7"})
    image, told = ensure_default(), list[str]()
    modules = {"near.py": base64.b64encode(b"NAME = 'beside'").decode()}
    info = server.start(
        source=SOURCE,
        file="x.py",
        function="pick",
        image=image,
        modules=modules,
        progress=lambda what, done, total: told.append(what),
    )
    assert told[0] == f"asking {image} for its Python" and told[-1] == "keeping the packages"
    for entry in server.entries(info.id, follow=True):
        assert entry.kind != "run.failed", entry
        if entry.kind == "run.suspended":
            break
    index.files.clear()
    server.signal(info.id, "go")
    assert server.result(info.id, timeout_s=300) == ["1.0", 7, "beside"]
    native = "cp27-cp27m-manylinux1_x86_64"
    index.add("owls", "3.0", tag=native)
    with pytest.raises(AgentInvalid, match=r"owls has no wheel for Python 3\.\d+ on "):
        server.start(source=SOURCE, file="x.py", function="pick", image=image)

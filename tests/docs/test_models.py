"""docs/models.md: its settings are read, and its variables are those of a machine."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from perdure.execution.images.image import ImageConfig
from perdure.execution.sandboxes.workload import environment
from perdure.gateway.prices import Price
from perdure.gateway.prices import load as load_prices
from perdure.gateway.providers import RemoteProvider, load
from perdure.gateway.toolsecrets import load as load_secrets
from perdure.host.certificate import ensure
from perdure.host.paths import Home
from perdure.model import Budget, Call, CallsEndpoint, RunState, SandboxSpec
from perdure.runs.record import Record, StartRequest
from perdure.runs.tokens import KEY, keys, new_key
from perdure.server.settings import load as load_settings

PAGE = (Path(__file__).parents[2] / "docs/models.md").read_text()


async def test_its_settings_are_read(tmp_path: Path) -> None:
    block = "\n".join(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    shutil.copy(ensure(tmp_path, "127.0.0.1")[0], home.root / "work-ca.pem")
    (home.root / "spare.key").write_text("secret")
    (home.root / "github.token").write_text("secret")
    (home.root / "settings.toml").write_text(block)
    providers = load(home, {})
    first, second = providers.places("large-9", "openai-chat")
    assert (first.provider.name, second.provider.name, second.model) == ("work", "spare", "small-2")
    assert isinstance(first.provider, RemoteProvider) and first.provider.tls is not None
    assert load_prices(home).of("claude-sonnet-4-5") == Price(3.0, 15.0, 0.3, 3.75)
    call = Call("r", 1, "auto", 0, "GET", "/perdure/secret/github/user", {}, b"")
    assert load_secrets(home).use(call, ["research"]).path == "/user"
    assert load_settings(home).budgets.of(["research"]) == Budget(tokens=2_000_000, calls=500, usd=20.0)
    assert [(one.name, one.per) for one in load_settings(home).budgets.joint] == [("research*", "day"), ("*", "month")]
    assert (await second.provider.endpoint()).headers == {"authorization": "Bearer secret"}


def test_its_variables_are_those_of_a_machine() -> None:
    calls = CallsEndpoint(url="unix:/x:/v1/calls", run_id="r", epoch=1, token="t")
    record = Record(state=RunState.QUEUED, request=StartRequest(), guest_key=new_key())
    found = environment(SandboxSpec(image="i", calls=calls, env=keys(record)), ImageConfig(), "host", tty=False)
    found = {name: value.replace(record.guest_key, f"{KEY}…") for name, value in found.items()}
    told = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| `(.*?)` \|", PAGE, re.MULTILINE)
    assert {name: value for names, value in told for name in re.findall(r"\w+", names)} == {
        name: value for name, value in found.items() if name.startswith(("OPENAI_", "ANTHROPIC_"))
    }

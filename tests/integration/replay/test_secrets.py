"""Secrets for tools on the replay road: a worker has a door for HTTP clients, and does not see the secret."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from perdure.gateway.toolsecrets import load
from perdure.testing.scripted import ScriptedProvider as Host
from perdure.testing.workers import WorkerHouse

VALUE = "ghp_of-the-host"

ASKS = """
import json, os, urllib.error, urllib.request

def ask(secret, path, **options):
    request = urllib.request.Request(secret.url + path, **options)
    try:
        with urllib.request.urlopen(request) as answer:
            return [answer.status, answer.read().decode()]
    except urllib.error.HTTPError as error:
        return [error.code, json.loads(error.read())["error"]["code"]]

@agent(durability="replay")
def f(ctx: Context):
    secret = ctx.secret("github")
    first = ctx.step("look", ask, secret, "/user?a=b")
    ctx.wait_for("go")
    second = ctx.step("make", ask, secret, "/issues", data=b"owls", method="POST", headers={"X-Of-Program": "1"})
    others = [ask(ctx.secret("gitlab"), "/x"), ask(secret, "/../x")]
    word = secret.url.split("/")[3]
    try:
        urllib.request.urlopen(secret.url.replace(word, "guess") + "/user")
    except urllib.error.HTTPError as error:
        others.append(error.code)
    return [first, second, others, [value for value in os.environ.values() if "ghp_" in value]]

@agent(durability="replay")
async def g(ctx: AsyncContext):
    return await ctx.step("look", ask, ctx.secret("github"), "/user")
"""


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    made = Host()
    await made.open()
    made.acts = [made.says({"login": "owl"})]
    yield made
    await made.close()


async def test_a_worker_asks_with_any_client(road: WorkerHouse, host: Host) -> None:
    await road.down()
    text = f'[secrets.github]\nbase_url = "{host.url}"\nvalue_env = "TOKEN"\nallow = ["*"]\n'
    (road.home.root / "settings.toml").write_text(text)
    road.secrets = load(road.home, {"TOKEN": VALUE})
    await road.up()
    run_id = await road.start(ASKS)
    await road.until(run_id, "run.suspended")  # its worker ends; the next one answers the first step from the log
    await road.engine.signal(run_id, "go", None)
    first, second, others, seen = await road.result(run_id)
    assert first == second == [200, '{"login": "owl"}']
    assert others == [[404, "not-found"], [400, "invalid-value"], 404] and seen == []
    assert host.paths == ["/v1/user?a=b", "/v1/issues"] and host.bodies[1] == b"owls"
    assert all(headers["authorization"] == f"Bearer {VALUE}" for headers in host.headers)
    assert host.headers[1]["x-of-program"] == "1"
    assert len(await road.entries(run_id, "secret.used")) == 2
    assert await road.result(await road.start(ASKS, function="g")) == [200, '{"login": "owl"}']
    await road.secrets.close()

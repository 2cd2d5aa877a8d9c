from __future__ import annotations

import re
from pathlib import Path

import pytest

from perdure.errors import InvalidValue, NotFound, PerdureError
from perdure.gateway.limits import Limits
from perdure.gateway.providers import OPENAI_URL, Endpoint, RemoteProvider, load
from perdure.host.paths import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", tmp_path / "cache").make()


def settings(home: Home, text: str) -> None:
    (home.root / "settings.toml").write_text(text)


async def test_with_no_key_the_offline_model_answers(home: Home) -> None:
    providers = load(home, {})
    assert providers.default == "offline" and list(providers.by_name) == ["offline"]
    assert providers.for_model("gpt-4o").name == "offline"
    assert providers.for_model("claude", "anthropic-messages").name == "offline"
    with pytest.raises(NotFound, match="no provider here speaks openai-other"):
        providers.for_model("", "openai-other")


async def test_the_environment_makes_the_provider_openai(home: Home) -> None:
    providers = load(home, {"OPENAI_API_KEY": "sk-1"})
    assert providers.default == "openai"
    assert await providers.for_model("x").endpoint() == Endpoint(OPENAI_URL, {"authorization": "Bearer sk-1"})
    local = load(home, {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1/"})
    assert await local.for_model("").endpoint() == Endpoint("http://127.0.0.1:9/v1", {})


async def test_the_environment_makes_the_provider_anthropic(home: Home) -> None:
    providers = load(home, {"ANTHROPIC_API_KEY": "sk-ant", "OPENAI_API_KEY": "sk-1"})
    assert providers.default == "openai" and providers.for_model("gpt", "openai-responses").name == "openai"
    found = await providers.for_model("claude", "anthropic-messages").endpoint("anthropic-messages")
    assert found == Endpoint("https://api.anthropic.com/v1", {"x-api-key": "sk-ant"})
    local = load(home, {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9", "ANTHROPIC_AUTH_TOKEN": "t"})
    assert local.default == "anthropic"
    found = await local.by_name["anthropic"].endpoint("anthropic-messages")
    assert found == Endpoint("http://127.0.0.1:9/v1", {"authorization": "Bearer t"})
    with pytest.raises(NotFound, match="speaks openai-chat"):  # and not the small model of this machine
        local.for_model("gpt", "openai-chat")


def test_settings_name_providers_routes_and_the_default(home: Home) -> None:
    settings(
        home,
        'provider = "b"\n[providers.a]\nbase_url = "https://a.example/v1"\nkey_env = "A_KEY"\nmodels = ["big-*"]\n'
        'fallbacks = ["b:small:1"]\n'
        '[providers.b]\nbase_url = "https://b.example/v1"\nmodel = "small"\n',
    )
    providers = load(home, {"A_KEY": "ka"})
    assert providers.for_model("big-1").name == "a"
    assert [place.provider.name for place in providers.places("big-1", "openai-chat")] == ["a", "b"]
    assert providers.places("big-1", "openai-chat")[1].model == "small:1"
    assert providers.for_model("other").name == providers.for_model("").name == "b"
    assert providers.by_name["a"] == RemoteProvider("a", "https://a.example/v1", "ka", "")
    assert load(home, {"A_KEY": "k", "PERDURE_PROVIDER": "offline"}).default == "offline"
    assert "ka" not in repr(providers)


async def test_what_settings_say_beside_of_who_is_asked_counts_for_one_of_the_environment_too(home: Home) -> None:
    settings(
        home,
        '[providers.openai]\nbase_url = "https://old.example/v1"\nkey_env = "OPENAI_API_KEY"\nmodels = ["big-*"]\n'
        'fallbacks = ["b"]\nsilence_s = 5\nrequests_per_minute = 50\n[providers.b]\nbase_url = "https://b.example/v1"\n',
    )
    providers = load(home, {"OPENAI_API_KEY": "sk"})
    first, second = providers.places("big-1", "openai-chat")
    assert (first.provider.name, second.provider.name, first.provider.silence_s) == ("openai", "b", 5.0)
    assert await first.provider.endpoint() == Endpoint("https://api.openai.com/v1", {"authorization": "Bearer sk"})
    assert providers.limits == {"openai": Limits(requests_per_minute=50)}


@pytest.mark.parametrize(
    ("text", "environ", "error", "message"),
    [
        ("provider = ", {}, InvalidValue, "is not TOML"),
        ("providers = 3", {}, InvalidValue, "providers is not a table"),
        ("[providers]\na = 1", {}, InvalidValue, r"\[providers.a\] is not a table"),
        ("[providers.a]\nkey = 'x'", {}, InvalidValue, "base_url is missing"),
        ("[providers.a]\nbase_url = 'ftp://x'", {}, InvalidValue, "is not a URL"),
        ("[providers.a]\nbase_url = 3", {}, InvalidValue, "base_url is not a string"),
        ("[providers.a]\nbase_url = 'http://x'\nkey_env = 'NO'", {}, InvalidValue, "the environment has no NO"),
        ("[providers.a]\nbase_url = 'http://x'\nmodels = 'm'", {}, InvalidValue, "models is not a list"),
        ("[providers.a]\nurl = 'http://x'", {}, InvalidValue, "unknown setting 'url'"),
        ("[providers.offline]\nbase_url = 'http://x'", {}, InvalidValue, "always there"),
        ("[providers.openai]\nlimits = 3", {"OPENAI_API_KEY": "sk"}, InvalidValue, "unknown setting 'limits'"),
        ("provider = 'x'", {}, NotFound, "no provider 'x'"),
        ("", {"PERDURE_PROVIDER": "y"}, NotFound, "no provider 'y'"),
        ("", {"OPENAI_BASE_URL": "nonsense"}, InvalidValue, "OPENAI_BASE_URL"),
        (
            "",
            {"OPENAI_BASE_URL": "https://x/v1?api-version=1"},
            InvalidValue,
            "OPENAI_BASE_URL: a base URL has neither",
        ),
        ("[providers.a]\nbase_url = 'http://u:pass@x'", {}, InvalidValue, "a base URL has neither"),
        ("[providers.a]\nbase_url = 'http://x:99999'", {}, InvalidValue, "is not a URL"),
        ("[providers.a]\nbase_url = 'http://[x'", {}, InvalidValue, "is not a URL"),
        ("[provider.a]\nbase_url = 'http://x'", {}, InvalidValue, "provider is no name of a provider"),
        ("[providers.a]\nbase_url = 'http://x'\nkey_env = ''", {}, InvalidValue, "key_env is empty"),
        ("[providers.a]\nbase_url = 'http://x'\nkey_file = ''", {}, InvalidValue, "key_file is empty"),
        ("[providers.a]\nbase_url = 'http://x'\nca_file = '''\\u0000'''", {}, InvalidValue, "ca_file"),
        ("", {"OPENAI_API_KEY": "two\nlines"}, InvalidValue, "OPENAI_API_KEY: its key has what no key has"),
        ("", {"ANTHROPIC_AUTH_TOKEN": "token "}, InvalidValue, "ANTHROPIC_API_KEY: its key has what no key has"),
        ("[providers.a]\nbase_url = 'http://x'\nkey = '\u00fc'", {}, InvalidValue, "its key has what no key has"),
    ],
)
def test_wrong_settings_say_where(
    home: Home, text: str, environ: dict[str, str], error: type[PerdureError], message: str
) -> None:
    settings(home, text)
    with pytest.raises(error, match=message) as raised:
        load(home, environ)
    assert raised.value.hint and not {"pass", "lines"} & {
        *re.split(r"\W", f"{raised.value.message} {raised.value.hint}")
    }

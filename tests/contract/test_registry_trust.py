"""Whom a pull trusts, and with what: token services, certificates, and what is on this machine."""

from __future__ import annotations

import datetime
import ipaddress
import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from perdure.errors import NoRights, PerdureError, Unavailable
from perdure.execution.registry.reaching import is_here
from perdure.testing.images import Answer, FakeRegistry, HandMade, Request, root_layer
from perdure.testing.pulls import Pulls, replace

# -- token services ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "kind", "word"),
    [
        ((200, {}, b'{"token": "lie"}'), NoRights, "refuses us"),
        ((200, {}, b'{"no": "token"}'), Unavailable, "gives no token"),
        ((200, {}, b"no JSON"), Unavailable, "gives no token"),
        ((200, {}, b'{"token": "x\\r\\nEvil: 1"}'), PerdureError, ""),
        ((200, {}, b"[" * (2 << 20)), Unavailable, "gives no token"),
        ((302, {"Location": "/token"}, b""), NoRights, "refuses us"),
        ((401, {"WWW-Authenticate": 'Bearer realm="/token"'}, b""), NoRights, "refuses us"),
        ((500, {}, b""), Unavailable, "token service"),
    ],
)
def test_a_token_service_that_lies(
    pulls: Pulls, fake: FakeRegistry, token: Answer, kind: type[PerdureError], word: str
) -> None:
    challenge = f'Bearer realm="http://{fake.host}/token",service="s"'

    def answered(request: Request) -> Answer | None:
        return token if request.path.startswith("/token") else (401, {"WWW-Authenticate": challenge}, b"")

    fake.answer = answered
    pulls.refused(f"{fake.host}/app:v1", kind, word)
    assert len(fake.asked) < 20


@pytest.mark.parametrize("where", ["file", "helper"])
def test_an_identity_token_is_traded_for_one_of_each_scope(
    pulls: Pulls, fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """What services give that let nobody in by a password: in docker's file, or as a helper tells it."""
    (tmp_path / "docker").mkdir()
    config: dict[str, Any] = {"auths": {fake.host: {"auth": "PHRva2VuPjo=", "identitytoken": "identity"}}}
    if where == "helper":
        config = {"credsStore": "test"}
        helper = tmp_path / "docker-credential-test"
        helper.write_text('#!/bin/sh\ncat > /dev/null; echo \'{"Username": "<token>", "Secret": "identity"}\'\n')
        helper.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "docker" / "config.json").write_text(json.dumps(config))
    challenge = f'Bearer realm="http://{fake.host}/token",service="s"'
    sent: list[dict[str, str]] = []

    def answered(request: Request) -> Answer | None:
        if request.path == "/token" and request.method == "POST":
            sent.append(dict(parse_qsl(request.body.decode())))
            return 200, {}, b'{"access_token": "token"}'
        if request.headers.get("Authorization") != "Bearer token":
            return 401, {"WWW-Authenticate": challenge}, b""
        return None

    fake.answer = answered
    assert pulls.pull(f"{fake.host}/app:v1") == fake.tags["v1"]["digest"]
    [asked] = sent
    assert asked == {
        "grant_type": "refresh_token", "client_id": "perdure", "refresh_token": "identity", "service": "s",
        "scope": "repository:app:pull",
    }  # fmt: skip


@pytest.mark.parametrize("realm", ["file:///etc/passwd", "gopher://x/", "", "http://[", "/relative"])
def test_a_challenge_that_leads_nowhere(pulls: Pulls, fake: FakeRegistry, realm: str) -> None:
    replace(fake, "manifests/", (401, {"WWW-Authenticate": f'Bearer realm="{realm}"'}, b""))
    pulls.refused(f"{fake.host}/app:v1", PerdureError, f"{fake.host}/app")


# -- TLS ---------------------------------------------------------------------------------------------------------------


def address() -> str:
    """An address of this machine that is not loopback."""
    found = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    usable = [one for one in found if ":" not in one and not is_here(one)]
    if not usable:
        pytest.skip("this machine has no address but loopback")
    return usable[0]


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed one for an IP address or a host, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    try:
        names: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        names = x509.DNSName(name)
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    kind, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key").write_bytes(key.private_bytes(kind, form, serialization.NoEncryption()))
    return folder / "ca.crt", folder / "key"


def test_certificates(pulls: Pulls, made: HandMade, tmp_path: Path) -> None:
    image = made.image([root_layer()])
    host = address()
    with FakeRegistry(made, {"v1": image}, address=host, tls=certificate(tmp_path, host)) as fake:
        name = f"{fake.host}/app:v1"
        said = pulls.refused(name, Unavailable, "certificate", "not to be trusted", "--tls-verify=false")
        trusted = tmp_path / "docker" / "certs.d" / fake.host
        assert f"/etc/docker/certs.d/{fake.host}/ca.crt" in said
        trusted.mkdir(parents=True)
        (trusted / "ca.crt").write_bytes((tmp_path / "ca.crt").read_bytes())
        assert pulls.pull(name) == image["digest"]
        (trusted / "ca.crt").unlink()
        pulls.library.remove(name)
        assert pulls.pull(name, verify=False) == image["digest"]


def test_a_certificate_for_another_host(pulls: Pulls, made: HandMade, tmp_path: Path) -> None:
    host = address()
    tls = certificate(tmp_path, "other.example")
    with FakeRegistry(made, {"v1": made.image([root_layer()])}, address=host, tls=tls) as fake:
        trusted = tmp_path / "docker" / "certs.d" / fake.host
        trusted.mkdir(parents=True)
        (trusted / "ca.crt").write_bytes((tmp_path / "ca.crt").read_bytes())
        pulls.refused(f"{fake.host}/app:v1", Unavailable, "not to be trusted", "not valid for")


def test_tls_on_this_machine_needs_no_authority(pulls: Pulls, made: HandMade, tmp_path: Path) -> None:
    image = made.image([root_layer()])
    with FakeRegistry(made, {"v1": image}, tls=certificate(tmp_path, "other.example")) as fake:
        assert pulls.pull(f"{fake.host}/app:v1") == image["digest"]


def test_no_tls_elsewhere_unless_it_is_said(pulls: Pulls, made: HandMade) -> None:
    image = made.image([root_layer()])
    with FakeRegistry(made, {"v1": image}, address=address()) as fake:
        pulls.refused(f"{fake.host}/app:v1", Unavailable, "does not speak TLS", "--tls-verify=false")
        assert pulls.pull(f"{fake.host}/app:v1", verify=False) == image["digest"]


def test_https_does_not_lead_to_http(pulls: Pulls, made: HandMade, fake: FakeRegistry, tmp_path: Path) -> None:
    with FakeRegistry(made, fake.tags, tls=certificate(tmp_path, "x")) as safe:
        replace(safe, "/blobs/", (307, {"Location": f"http://{fake.host}/v2/app/blobs/x"}, b""))
        pulls.refused(f"{safe.host}/app:v1", Unavailable, "from https to http")
        challenge = f'Bearer realm="http://{fake.host}/token"'
        replace(safe, "manifests/", (401, {"WWW-Authenticate": challenge}, b""))
        pulls.refused(f"{safe.host}/app:v1", Unavailable, "from https to http", login=("me", "secret"))
    assert fake.asked == []


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost:5000", True),
        ("127.0.0.1", True),
        ("127.9.9.9:1", True),
        ("[::1]:5000", True),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:5000", False),
        ("registry", False),
        ("10.0.0.1:5000", False),
    ],
)
def test_who_is_on_this_machine(host: str, here: bool) -> None:
    assert is_here(host) is here

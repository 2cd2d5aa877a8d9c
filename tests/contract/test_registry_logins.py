"""Logins to a real registry: a password, a token, a credential helper; and what is told when there is none."""

from __future__ import annotations

import base64
import datetime
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from perdure.errors import InvalidValue, NoRights, Unavailable
from perdure.execution.registry.retry import Patience
from perdure.execution.snapshots.stores import open_store
from perdure.formats.manifest import Descriptor, digest_of
from perdure.host.logins import credentials
from perdure.testing.proxy import Fault, FaultingProxy
from perdure.testing.servers import registry_server

DATA = b"what only friends may read" * 1000
BLOB = Descriptor(media_type="test", digest=digest_of(DATA), size=len(DATA))
# bcrypt of "secret"; the registry takes no other kind
HTPASSWD = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Docker's configuration, empty."""
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return folder


def log_in(docker: Path, host: str, user: str = "me", password: str = "secret") -> None:
    held = base64.b64encode(f"{user}:{password}".encode()).decode()
    (docker / "config.json").write_text(json.dumps({"auths": {host: {"auth": held}}}))


def trip(url: str, folder: Path) -> None:
    """A blob there and back."""
    (folder / "data").write_bytes(DATA)
    with closing(open_store(url, Patience(tries=2))) as store:
        store.put(BLOB, folder / "data")
        assert store.has(BLOB)
        assert store.read(BLOB, 3, 100) == DATA[3:103]


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that wants a password."""
    folder = tmp_path_factory.mktemp("basic")
    (folder / "htpasswd").write_text(HTPASSWD)
    with registry_server(folder, f"{{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}") as host:
        yield host


def test_a_password(basic: str, docker: Path, tmp_path: Path) -> None:
    log_in(docker, basic)
    trip(f"oci+http://{basic}/with/password", tmp_path)


@pytest.mark.parametrize("password", ["wrong", None])
def test_no_password_or_a_wrong_one(basic: str, docker: Path, tmp_path: Path, password: str | None) -> None:
    if password is not None:
        log_in(docker, basic, password=password)
    with pytest.raises(NoRights, match="refuses us") as caught:
        trip(f"oci+http://{basic}/with/password", tmp_path)
    assert caught.value.hint == f"Log in first: fcrun login {basic}"


def test_a_credential_helper(basic: str, docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\n[ "$1" = get ] || exit 1\nread -r host\n'
        f'[ "$host" = {basic} ] || {{ echo credentials not found in native keychain; exit 1; }}\n'
        'echo \'{"ServerURL": "x", "Username": "me", "Secret": "secret"}\'\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for config in ({"credsStore": "test", "auths": {basic: {}}}, {"credHelpers": {basic: "test"}}):
        (docker / "config.json").write_text(json.dumps(config))
        trip(f"oci+http://{basic}/with/helper", tmp_path)
    (docker / "config.json").write_text('{"credsStore": "test"}')
    assert credentials("other.example") is None
    (docker / "config.json").write_text('{"credsStore": "missing"}')
    with pytest.raises(NoRights, match="docker-credential-missing does not run"):
        credentials(basic)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"auths": 5}', '{"auths": {"h": {"auth": "%%%"}}}', '{"auths": {"h": 7}}']
)
def test_a_configuration_that_does_not_read(docker: Path, text: str) -> None:
    (docker / "config.json").write_text(text)
    with pytest.raises(InvalidValue, match="does not read"):
        credentials("h")


def test_no_configuration(docker: Path) -> None:
    assert credentials("h") is None
    (docker / "config.json").write_text("{}")
    assert credentials("h") is None


class TokenService:
    """The token authentication of distribution, as Docker Hub and others have it: who has a password gets a token."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.lifetime_s = 300
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.bundle = folder / "bundle.pem"
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self._certificate = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                scope = parse_qs(urlsplit(self.path).query)["scope"][0]
                service.asked.append(scope)
                known = self.headers.get("Authorization") == "Basic " + base64.b64encode(b"me:secret").decode()
                body = json.dumps({"token": service.token(scope)}).encode() if known else b"who are you"
                self.send_response_only(200 if known else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def token(self, scope: str) -> str:
        """A JSON Web Token (RFC 7519) with the claims that distribution asks for."""
        kind, name, actions = scope.split(":")
        now = int(time.time())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [self._certificate]}
        claims = {
            "iss": "issuer", "sub": "me", "aud": "service", "jti": "1",
            "nbf": now - 400, "iat": now - 400, "exp": now + self.lifetime_s,
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }  # fmt: skip
        signed = b".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        signature = self._key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return b".".join((signed, _base64url(signature))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, TokenService]]:
    """A registry that wants tokens, and the service that gives them."""
    folder = tmp_path_factory.mktemp("tokens")
    service = TokenService(folder)
    words = f"realm: '{service.realm}', service: service, issuer: issuer, rootcertbundle: {service.bundle}"
    try:
        with registry_server(folder, f"{{token: {{{words}}}}}") as host:
            yield host, service
    finally:
        service.close()


def test_a_token_for_each_scope_and_no_more(tokens: tuple[str, TokenService], docker: Path, tmp_path: Path) -> None:
    host, service = tokens
    service.asked.clear()
    log_in(docker, host)
    trip(f"oci+http://{host}/with/token", tmp_path)
    assert service.asked == ["repository:with/token:pull,push", "repository:with/token:pull"]


def test_many_threads_ask_for_one_token(tokens: tuple[str, TokenService], docker: Path, tmp_path: Path) -> None:
    host, service = tokens
    log_in(docker, host)
    trip(f"oci+http://{host}/with/threads", tmp_path)
    service.asked.clear()
    store = open_store(f"oci+http://{host}/with/threads")
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda offset: store.read(BLOB, offset, 10) == DATA[offset : offset + 10], range(64))) == {
            True
        }
    assert service.asked == ["repository:with/threads:pull"]
    store.close()


def test_a_token_that_ran_out_is_renewed(tokens: tuple[str, TokenService], docker: Path, tmp_path: Path) -> None:
    host, service = tokens
    log_in(docker, host)
    trip(f"oci+http://{host}/with/renewal", tmp_path)
    service.asked.clear()
    with FaultingProxy(host) as proxy:
        log_in(docker, proxy.host)
        with closing(open_store(f"oci+http://{proxy.host}/with/renewal")) as store:
            assert store.read(BLOB, 0, 10) == DATA[:10]
            challenge = f'Bearer realm="{service.realm}",service="service",error="invalid_token"'
            proxy.faults = [Fault("status", status=401, headers=(("WWW-Authenticate", challenge),))]
            assert store.read(BLOB, 10, 10) == DATA[10:20]
        assert len(service.asked) == 2


def test_the_token_service_refuses_us(tokens: tuple[str, TokenService], docker: Path, tmp_path: Path) -> None:
    host, _ = tokens
    log_in(docker, host, password="wrong")
    with pytest.raises(NoRights, match="refuses us"):
        trip(f"oci+http://{host}/with/token", tmp_path)


def test_the_token_service_is_gone(registry: str, docker: Path) -> None:
    with FaultingProxy(registry) as proxy:
        gone = 'Bearer realm="http://127.0.0.1:1/token",service="service"'
        proxy.always = [Fault("status", status=401, headers=(("WWW-Authenticate", gone),))]
        patience = Patience(tries=2, pause=lambda pause_s: None)
        with (
            closing(open_store(f"oci+http://{proxy.host}/with/none", patience)) as store,
            pytest.raises(Unavailable, match="the token service"),
        ):
            store.has(BLOB)

"""Pulls from registries that break, lie or stall: what is said, and that nothing of an image is left."""

from __future__ import annotations

import datetime
import gzip
import ipaddress
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import (
    ImageInvalid,
    InvalidValue,
    NoRights,
    NoSpace,
    NotFound,
    PerdureError,
    Unavailable,
)
from perdure.execution.images import pulling, pushing
from perdure.execution.images.library import ImageLibrary
from perdure.execution.registry.reaching import is_here, opened
from perdure.execution.registry.retry import Patience
from perdure.formats.references import parse
from perdure.host.paths import Home
from perdure.host.progress import silent
from perdure.testing import smalldisks
from perdure.testing.commands import Fcrun
from perdure.testing.images import (
    ARCHITECTURE,
    CONFIG,
    LAYER,
    MANIFEST,
    Answer,
    FakeRegistry,
    HandMade,
    Request,
    digest_of,
    root_layer,
    tar,
)

DEADLINE_S = 60.0


class Pulls:
    """A library, and pulls into it that try twice and never wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.library = ImageLibrary(folder)
        self.pauses: list[float] = []
        self.patience = Patience(tries=2, request_timeout_s=2.0, pause=self.pauses.append)

    def pull(self, name: str, *, verify: bool = True, login: tuple[str, str] | None = None) -> str:
        """The digest that the registry has under that name."""
        reference = parse(name)
        with closing(
            opened(
                reference.host, reference.path, url=reference.place, verify=verify, login=login, patience=self.patience
            )
        ) as repository:
            return pulling.pull(self.library, repository, reference, progress=silent).digest

    def refused(self, name: str, kind: type[PerdureError], *words: str, **options: Any) -> str:
        """What is said, where the pull must fail; no image is there then, and no part of one counts as one."""
        with pytest.raises(kind) as caught:
            self.pull(name, **options)
        said = str(caught.value)
        for word in words:
            assert word in said, said
        assert self.library.list() == []
        blobs = self.folder / "blobs"
        assert not blobs.exists() or list(blobs.iterdir()) == []
        return said


@pytest.fixture
def pulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pulls:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return Pulls(tmp_path / "images")


@pytest.fixture
def made() -> HandMade:
    return HandMade()


@pytest.fixture
def fake(made: HandMade) -> Iterator[FakeRegistry]:
    """With the image ``app:v1``."""
    image = made.image([root_layer(), tar({"more": b"2" * 50_000})])
    with FakeRegistry(made, {"v1": image}) as registry:
        yield registry


def layers(made: HandMade, fake: FakeRegistry) -> list[str]:
    manifest = json.loads(made.blobs[fake.tags["v1"]["digest"]])
    return [layer["digest"] for layer in manifest["layers"]]


def replace(fake: FakeRegistry, part: str, answer: Answer, *, times: int = -1) -> None:
    """What is asked for with this in its path is answered so."""
    left = [times]

    def answered(request: Request) -> Answer | None:
        if part not in request.path or left[0] == 0:
            return None
        left[0] -= 1
        return answer

    fake.answer = answered


def test_it_serves_as_registries_do(pulls: Pulls, fake: FakeRegistry) -> None:
    assert pulls.pull(f"{fake.host}/app:v1") == fake.tags["v1"]["digest"]
    assert pulls.library.get(f"{fake.host}/app:v1").config.cmd == ["/bin/init"]


def test_nobody_is_there(pulls: Pulls) -> None:
    pulls.refused("127.0.0.1:1/app:v1", Unavailable, "127.0.0.1:1/app", "refused", "2 tries")


# -- bytes that are not those that were promised -----------------------------------------------------------------------


def test_another_manifest_than_the_one_that_was_asked_for(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    other = made.image([root_layer({"other": b"1"})])
    digest = fake.tags["v1"]["digest"]
    replace(fake, f"manifests/{digest}", (200, {"Content-Type": MANIFEST}, made.blobs[other["digest"]]))
    pulls.refused(f"{fake.host}/app@{digest}", ImageInvalid, f"asked for {digest}", other["digest"])
    fake.tags["v1"] = made.index([(fake.tags["v1"], f"linux/{ARCHITECTURE}")])
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, f"names {digest}", other["digest"])


@pytest.mark.parametrize("number", [0, 1])
def test_another_layer(pulls: Pulls, made: HandMade, fake: FakeRegistry, number: int) -> None:
    digest = layers(made, fake)[number]
    data = bytearray(made.blobs[digest])
    data[len(data) // 2] ^= 1
    made.blobs[digest] = bytes(data)
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, digest, digest_of(bytes(data)), "damaged or changed")
    assert not [path for path in pulls.library.incoming_files() if digest[7:] in path.name]  # the next starts anew


def test_another_configuration(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    digest = json.loads(made.blobs[fake.tags["v1"]["digest"]])["config"]["digest"]
    made.blobs[digest] = made.blobs[digest].replace(b"/bin/init", b"/bin/evil")
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, digest, "damaged or changed")


@pytest.mark.parametrize("how", ["shorter", "breaks off", "longer"])
def test_a_layer_of_another_length(pulls: Pulls, made: HandMade, fake: FakeRegistry, how: str) -> None:
    digest = layers(made, fake)[1]
    data = made.blobs[digest]
    if how == "breaks off":
        replace(fake, digest, (206, {"Content-Range": "bytes 0-", "Content-Length": str(len(data))}, data[:-9]))
    else:
        made.blobs[digest] = data[:-9] if how == "shorter" else data + bytes(9)
    if how == "longer":  # more than was asked for is not read, and what was asked for is right
        assert pulls.pull(f"{fake.host}/app:v1")
    else:
        pulls.refused(f"{fake.host}/app:v1", Unavailable, "bytes", "2 tries")


def test_a_layer_that_unpacks_to_another_tar(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    """The blob is as promised, its content is not."""
    other = made.image([root_layer()], "")
    manifest = json.loads(made.blobs[other["digest"]])
    manifest["layers"] = [made.blob(gzip.compress(root_layer({"evil": b"1"})), f"{LAYER}+gzip")]
    fake.tags["v1"] = made.document(manifest, MANIFEST)
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, "its digest is", "promises")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda config: config["rootfs"]["diff_ids"].pop(), "one diff_id for each of 2 layers"),
        (lambda config: config.pop("rootfs"), "one diff_id for each of 2 layers"),
        (lambda config: config.update(architecture="s390x"), "is for linux/s390x"),
        (lambda config: config.update(os="windows"), "is for windows/"),
        (lambda config: config.update(config={"Cmd": "text"}), "malformed"),
    ],
)
def test_a_configuration_that_cannot_be(
    pulls: Pulls, made: HandMade, fake: FakeRegistry, change: Callable[[dict[str, Any]], object], word: str
) -> None:
    manifest = json.loads(made.blobs[fake.tags["v1"]["digest"]])
    config = json.loads(made.blobs[manifest["config"]["digest"]])
    change(config)
    manifest["config"] = made.document(config, CONFIG)
    fake.tags["v1"] = made.document(manifest, MANIFEST)
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, word)


# -- documents that are no image ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "media_type", "word"),
    [
        (b"no JSON", MANIFEST, "malformed"),
        (b"[]", MANIFEST, "malformed"),
        (b'{"config": 5, "layers": []}', MANIFEST, "malformed"),
        (b'{"schemaVersion": 2}', "text/html", "unknown kind 'text/html'"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "application/vnd.docker.distribution.manifest.v1+json", "schema 1"),
        (b"[" * 100_000, MANIFEST, "malformed"),
        (b'{"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}', "", "no matching manifest"),
    ],
)
def test_what_is_no_manifest(pulls: Pulls, fake: FakeRegistry, document: bytes, media_type: str, word: str) -> None:
    replace(fake, "manifests/", (200, {"Content-Type": media_type}, document))
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, f"{fake.host}/app", word)


def test_a_huge_manifest(pulls: Pulls, fake: FakeRegistry) -> None:
    replace(fake, "manifests/", (200, {"Content-Type": MANIFEST}, b" " * (5 << 20)))
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, "more than 4194304 bytes")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}, "is a foreign one"),
        ({"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar"}, "is a foreign one"),
        ({"urls": ["http://127.0.0.1:1/blob"]}, "is a foreign one"),
        ({"mediaType": f"{LAYER}+encrypted"}, "unknown kind"),
        ({"digest": "sha256:../../etc/passwd"}, "of no known kind"),
        ({"digest": "md5:d41d8cd98f00b204e9800998ecf8427e"}, "of no known kind"),
        ({"size": -1}, "of -1 bytes"),
    ],
)
def test_layers_that_cannot_be_brought(
    pulls: Pulls, made: HandMade, fake: FakeRegistry, change: dict[str, Any], word: str
) -> None:
    manifest = json.loads(made.blobs[fake.tags["v1"]["digest"]])
    manifest["layers"][1].update(change)
    fake.tags["v1"] = made.document(manifest, MANIFEST)
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, word)
    assert not [request for request in fake.asked if "/blobs/" in request.path]  # nothing was fetched for nothing


def test_an_artifact_that_is_no_image(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    manifest = json.loads(made.blobs[fake.tags["v1"]["digest"]])
    manifest["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    fake.tags["v1"] = made.document(manifest, MANIFEST)
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, "is no image", "helm")


def test_a_layer_larger_than_the_disk(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    manifest = json.loads(made.blobs[fake.tags["v1"]["digest"]])
    manifest["layers"][1]["size"] = 1 << 60
    fake.tags["v1"] = made.document(manifest, MANIFEST)
    pulls.refused(f"{fake.host}/app:v1", NoSpace, "to be fetched")


def test_indexes_in_indexes_without_end(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    for _ in range(8):
        fake.tags["v1"] = made.index([(fake.tags["v1"], f"linux/{ARCHITECTURE}")])
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, "without end")


# -- answers that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["manifests/", "blobs/"])
@pytest.mark.parametrize(
    ("status", "kind", "word"),
    [
        (401, NoRights, "Log in first: fcrun login"),
        (403, NoRights, "refuses us"),
        (404, NotFound, "has no"),
        (418, Unavailable, "answered with 418"),
        (429, Unavailable, "answered with 429"),
        (500, Unavailable, "answered with 500"),
        (503, Unavailable, "answered with 503"),
    ],
)
def test_statuses(
    pulls: Pulls, fake: FakeRegistry, part: str, status: int, kind: type[PerdureError], word: str
) -> None:
    replace(fake, part, (status, {}, b'{"errors": [{"code": "SOME"}]}'))
    pulls.refused(f"{fake.host}/app:v1", kind, word, f"{fake.host}/app")


@pytest.mark.parametrize(("after", "least_s"), [({}, 0.0), ({"Retry-After": "3"}, 3.0)])
def test_too_many_requests_for_a_moment(
    pulls: Pulls, fake: FakeRegistry, after: dict[str, str], least_s: float
) -> None:
    replace(fake, "manifests/", (429, after, b"slowly"), times=1)
    assert pulls.pull(f"{fake.host}/app:v1")
    assert len(pulls.pauses) == 1 and least_s <= pulls.pauses[0] <= 5.0


@pytest.mark.parametrize("part", ["manifests/", "blobs/"])
def test_redirects_without_end(pulls: Pulls, fake: FakeRegistry, part: str) -> None:
    here = f"http://{fake.host}/v2/app/{part}again"
    replace(fake, part, (307, {"Location": here}, b""))
    pulls.refused(f"{fake.host}/app:v1", Unavailable, "more than 5 redirects")


def test_another_host_is_not_told_who_we_are(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    with FakeRegistry(made) as other:

        def answered(request: Request) -> Answer | None:
            if request.headers.get("Authorization") != "Basic bWU6c2VjcmV0":
                return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""
            if "/blobs/" in request.path:
                return 307, {"Location": f"http://{other.host}{request.path}"}, b""
            return None

        fake.answer = answered
        assert pulls.pull(f"{fake.host}/app:v1", login=("me", "secret"))
        assert other.asked and not [one for one in other.asked if "Authorization" in one.headers]
        pulls.library.remove(f"{fake.host}/app:v1")
        pulls.refused(f"{fake.host}/app:v1", NoRights, "refuses us", login=("me", "wrong"))


def test_a_registry_that_knows_no_ranges(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    image = made.image([root_layer({"noise": os.urandom(9 << 20)})], "")
    fake.tags["v1"] = image

    def whole(request: Request) -> Answer | None:
        data = made.blobs.get(request.path.rpartition("/")[2])
        return (200, {}, data) if data is not None and "/blobs/" in request.path else None

    fake.answer = whole
    assert pulls.pull(f"{fake.host}/app:v1") == image["digest"]


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


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "UPPER", "a/../b", "../a", "localhost:5000/a/../../etc", "a:b:c", "", "localhost:5000/", "a@sha256:12",
        "a@md5:d41d8cd98f00b204e9800998ecf8427e", "a b", "a\nb", "http://localhost:5000/a", "-a", "a/" + "b" * 300,
    ],
)  # fmt: skip
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InvalidValue, match=r"is no name|is no digest"):
        parse(name)


@pytest.mark.parametrize(
    ("name", "host", "path", "known"),
    [
        ("alpine", "docker.io", "library/alpine", "alpine:latest"),
        ("docker.io/alpine:3", "docker.io", "library/alpine", "alpine:3"),
        ("index.docker.io/me/app", "docker.io", "me/app", "me/app:latest"),
        ("me/app:x", "docker.io", "me/app", "me/app:x"),
        ("localhost/app", "localhost", "app", "localhost/app:latest"),
        ("ghcr.io/me/app:x", "ghcr.io", "me/app", "ghcr.io/me/app:x"),
        ("registry:5000/app", "registry:5000", "app", "registry:5000/app:latest"),
        (f"a:x@sha256:{'0' * 64}", "docker.io", "library/a", f"a@sha256:{'0' * 64}"),
    ],
)
def test_where_names_lead(name: str, host: str, path: str, known: str) -> None:
    reference = parse(name)
    assert (reference.host, reference.path, reference.name) == (host, path, known)


# -- disks and kills ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [20, 300, 1400, 2000])
def test_a_full_disk(made: HandMade, tmp_path: Path, pages: int) -> None:
    """While the blobs come, or while the disk is made of them: nothing is left, and with room the pull works."""
    image = made.image([root_layer({"noise": os.urandom(4 << 20)})], "")
    with smalldisks.mounted(tmp_path / "small", 32) as small, FakeRegistry(made, {"v1": image}) as fake:
        pulls = Pulls(small / "images")
        smalldisks.fill(small, pages)
        pulls.refused(f"{fake.host}/app:v1", NoSpace, "")
        assert pulls.library.incoming_files() == []
        left = {path.name for path in (small / "images").iterdir()} if (small / "images").exists() else set()
        assert left <= {"lock", "blobs", "incoming", "index.json"}
        smalldisks.clear(small)
        assert pulls.pull(f"{fake.host}/app:v1") == image["digest"]


PULL = """
import os, signal, sys
from pathlib import Path
from perdure.execution.images import pulling
from perdure.execution.images.library import ImageLibrary
from perdure.execution.registry.reaching import opened
from perdure.formats.references import parse

left = int(sys.argv[3])
def dying(step):
    def taken(*values, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*values, **named)
    return taken
for name in ("fsync", "rename", "unlink", "mkdir"):
    setattr(os, name, dying(getattr(os, name)))
reference = parse(sys.argv[2])
repository = opened(reference.host, reference.path, url=reference.place)
pulling.pull(ImageLibrary(Path(sys.argv[1])), repository, reference, progress=lambda *step: None)
"""


def test_a_kill_at_every_step_leaves_the_image_or_none(pulls: Pulls, fake: FakeRegistry) -> None:
    """And the next pull works, after which nothing is there but the image."""
    name, digest = f"{fake.host}/app:v1", fake.tags["v1"]["digest"]
    steps = 0
    while True:
        steps += 1
        done = subprocess.run(
            [sys.executable, "-c", PULL, str(pulls.folder), name, str(steps)], timeout=DEADLINE_S, check=False
        )
        if done.returncode == 0:
            break
        assert done.returncode == -9
        assert [image.name for image in pulls.library.list()] in ([], [name])
        assert pulls.pull(name) == digest
        assert pulls.library.parts(name).digest == digest
        pulls.library.sweep(every=True)
        assert pulls.library.incoming_files() == []
        pulls.library.remove(name)
        assert [path.name for path in (pulls.folder / "blobs").iterdir()] == []
        assert {path.name for path in pulls.folder.iterdir()} == {"lock", "index.json", "blobs", "incoming"}
    assert steps > 15


def test_two_pulls_of_one_image_fetch_it_once(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda _: pulls.pull(f"{fake.host}/app:v1"), range(4)))
    assert set(digests) == {fake.tags["v1"]["digest"]}
    for layer in layers(made, fake):
        assert len([one for one in fake.asked if layer in one.path]) == 1
    assert len(pulls.library.list()) == 1


def test_a_push_that_the_registry_refuses(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    name = f"{fake.host}/app:v1"
    pulls.pull(name)
    reference = parse(name)

    def pushed() -> None:
        repository = opened(reference.host, reference.path, url=reference.place, patience=pulls.patience)
        with closing(repository):
            pushing.push(pulls.library, repository, reference, progress=silent)

    for status, kind in ((401, NoRights), (403, NoRights), (413, Unavailable), (429, Unavailable), (507, Unavailable)):
        replace(fake, "manifests/v1", (status, {}, b"no"))
        with pytest.raises(kind, match="refuses us" if kind is NoRights else str(status)):
            pushed()
    replace(fake, "/blobs/", (500, {}, b""))
    with pytest.raises(Unavailable, match="500"):
        pushed()


def test_a_registry_that_takes_its_time_over_a_large_blob(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    """It answers an upload when it has looked through all of it: nothing is sent twice meanwhile."""
    fake.tags["v1"] = made.image([root_layer({"noise": os.urandom(20 << 20)})], "")
    name = f"{fake.host}/app:v1"
    pulls.pull(name)
    reference, puts = parse(name), []
    slow = threading.Event()

    def answered(request: Request) -> Answer | None:
        if request.method == "HEAD":
            return 404, {}, b""
        if request.method == "POST":
            return 202, {"Location": f"/v2/app/blobs/uploads/{len(fake.asked)}"}, b""
        if request.method == "PUT" and "/uploads/" in request.path:
            puts.append(len(request.body))
            slow.wait(1.0 if len(request.body) > 1 << 20 else 0.0)
        return (201, {}, b"") if request.method == "PUT" else None

    fake.answer = answered
    patience = Patience(tries=2, request_timeout_s=0.3, pause=pulls.pauses.append)
    repository = opened(reference.host, reference.path, url=reference.place, patience=patience)
    with closing(repository):
        pushing.push(pulls.library, repository, reference, progress=silent)
    assert len(puts) == 2 and max(puts) > 20 << 20 and pulls.pauses == []


def test_the_command_fails_as_all_do(made: HandMade, fake: FakeRegistry, tmp_path: Path) -> None:
    """With 125, one error on standard error, and nothing on standard output that looks like success."""
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    ensure_running(home)
    fcrun = Fcrun(home)
    try:
        for argv, word in (
            (("pull", "127.0.0.1:1/app"), "refused"),
            (("pull", "-q", f"{fake.host}/app:none"), "has no tag none"),
            (("pull", "a/../b"), "is no name"),
            (("pull", "UPPER"), "is no name"),
            (("push", "UPPER"), "is no name"),
            (("pull", "--tls-verify=perhaps", "a"), "neither true nor false"),
            (("pull", "--platform", "plan9/mips", f"{fake.host}/app:v1"), "this node runs"),
            (("pull", "--platform", "//", f"{fake.host}/app:v1"), "this node runs"),
            (("pull",), "required"),
            (("create", "--pull", "sometimes", "a"), "invalid choice"),
        ):
            status, out, said = fcrun(*argv)
            assert status == 125 and word in said and "Digest" not in out, (argv, said)
        assert NodeClient(home).images() == []
    finally:
        NodeClient(home).shutdown()

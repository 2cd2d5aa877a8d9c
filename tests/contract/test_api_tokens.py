"""The API over TCP: TLS, tokens and what each may see and do, on a real fcrund; nothing here needs a machine."""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import InvalidValue, NoRights, NotFound, PerdureError, Unauthorized, Unavailable
from perdure.execution.sandboxes.record import KeptSnapshot
from perdure.formats.manifest import Snapshot
from perdure.host.paths import Home
from perdure.model import CallsEndpoint, ExecSpec, Fork, SandboxSpec
from perdure.node import tls
from perdure.node.access import MAY, RULES, Access
from perdure.node.tokens import Scope, Tokens
from perdure.testing.outside import OutsideNode, answer, outside_node
from perdure.testing.sandboxes import sleeping
from perdure.testing.snapshots import BLOCKS, Bench, block, blocks_of
from perdure.testing.tinynodes import root_tar

from .test_node_api import TINY

DEADLINE_S = 30.0
BOX, HERS = "b0b0b0b0b0b0", "aeaeaeaeaeae"


class World(OutsideNode):
    """``box`` is of nobody in particular, ``hers`` of the token ``ann``; both sleep."""

    ann: str
    bob: str
    reader: str
    admin: str
    of_box: Snapshot
    of_hers: Snapshot


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if shutil.which("mksquashfs") is None:
        pytest.skip("mksquashfs is not installed")
    root = tmp_path_factory.mktemp("outside")
    bench = Bench(root / "home")
    home = Home(root / "home", root / "cache").make()
    tokens = Tokens(home.root / "tokens.json")
    ann, ann_text = tokens.create("ann", Scope.OWN, None)
    template = bench.template(blocks_of([1] * BLOCKS))
    made = []
    for number, (sandbox_id, name, owner) in enumerate(((BOX, "box", ""), (HERS, "hers", ann.id))):
        snapshot = bench.capture(template, {number: block(7 + number)}, blocks_of(range(9)), sandbox_id=sandbox_id)
        facts = {"template": template.name, "template_digest": template.digest, "owner": owner}
        kept = [KeptSnapshot(info=snapshot.info())]
        sleeping(home.sandboxes, sandbox_id, name, [snapshot], snapshots=kept, **facts)
        made.append(snapshot)
    with outside_node(home) as node:
        node.client.import_image("tiny", root_tar())
        here = World(node.home, node.client, node.host, node.port, node.fingerprint)
        more = {
            "ann": ann_text,
            "bob": here.token("own", "bob"),
            "reader": here.token("read", "reader"),
            "admin": here.token("all", "admin"),
            "of_box": made[0],
            "of_hers": made[1],
        }
        for name, value in more.items():
            object.__setattr__(here, name, value)
        yield here


@pytest.fixture
def tidy(world: World) -> Iterator[World]:
    """What a test creates goes with it."""
    yield world
    for info in world.client.list():
        if info.id not in (BOX, HERS):
            world.client.remove(info.id, force=True)


def names(client: NodeClient) -> set[str]:
    return {info.name for info in client.list()}


# -- the way in ------------------------------------------------------------------------------------------------------
def test_a_command_works_over_tcp(tidy: World) -> None:
    status, out, err = tidy.fcrun(tidy.admin, "ps", "-a", "--format", "{{.Names}}")
    assert (status, err) == (0, "") and set(out.split()) == {"box", "hers"}
    status, out, err = tidy.fcrun("", "-H", f"tcp://{tidy.host}:{tidy.port}", "images", "-q", FCRUN_TOKEN=tidy.bob)
    assert (status, err) == (0, "") and out
    assert not (tidy.home.root / "of nobody").exists()  # it has nothing to do with a home here


def test_a_token_may_be_in_a_file(tidy: World, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(tidy.bob + "\n")
    assert tidy.fcrun("", "ps", FCRUN_TOKEN_FILE=str(file))[0] == 0
    status, _, said = tidy.fcrun("", "ps", FCRUN_TOKEN_FILE=str(tmp_path / "none"))
    assert status == 125 and "FCRUN_TOKEN_FILE" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"FCRUN_HOST": "http://127.0.0.1:1"}, ("FCRUN_HOST", "tcp://HOST:PORT")),
        ({"FCRUN_HOST": "tcp://127.0.0.1"}, ("FCRUN_HOST",)),
        ({"FCRUN_HOST": "tcp://x:y@127.0.0.1:1"}, ("FCRUN_HOST",)),
        ({"FCRUN_HOST": "unix://run.sock"}, ("FCRUN_HOST",)),
        ({"FCRUN_HOST": "tcp://127.0.0.1:1"}, ("does not answer", "Is the node running")),
        ({"FCRUN_HOST": "unix:///nowhere/fcrund.sock"}, ("does not answer",)),
        ({"FCRUN_TOKEN": ""}, ("wants a token", "fcrun token create")),
        ({"FCRUN_TOKEN": "two words"}, ("holds no token",)),
        ({"FCRUN_TOKEN": "fcrun_000000000000_" + "A" * 43}, ("not valid",)),
        ({"FCRUN_TOKEN": "secret"}, ("no token of fcrun",)),
        ({"FCRUN_FINGERPRINT": "00"}, ("FCRUN_FINGERPRINT", "64 hex digits")),
        ({"FCRUN_FINGERPRINT": "0" * 64}, ("is not who it should be", "fingerprint")),
        ({"FCRUN_FINGERPRINT": ""}, ("is not who it should be", "FCRUN_CA")),
        ({"FCRUN_FINGERPRINT": "", "FCRUN_CA": "/nowhere.pem"}, ("FCRUN_CA", "/nowhere.pem")),
    ],
)
def test_what_is_wrong_with_the_way_there(tidy: World, changes: dict[str, str], words: tuple[str, ...]) -> None:
    status, out, said = tidy.fcrun(tidy.bob, "ps", **changes)
    assert (status, out) == (125, "")
    for word in words:
        assert word in said
    assert tidy.bob not in said
    assert not (tidy.home.root / "of nobody").exists()  # a client over TCP starts no daemon


def test_its_own_certificate_holds_for_its_names(world: World) -> None:
    certificate = world.home.root / "tls" / "certificate.pem"
    more = {"FCRUN_FINGERPRINT": "", "FCRUN_CA": str(certificate)}
    assert world.fcrun(world.bob, "ps", **more)[0] == 0
    assert stat.S_IMODE((world.home.root / "tls" / "key.pem").stat().st_mode) == 0o600


def test_without_tls_nothing_is_said(world: World) -> None:
    with socket.create_connection((world.host, world.port), DEADLINE_S) as link:
        link.sendall(f"GET /v1/system HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.admin}\r\n\r\n".encode())
        heard = b""
        try:
            while piece := link.recv(4096):
                heard += piece
        except ConnectionError:
            pass
    assert b"HTTP" not in heard


def test_old_tls_is_refused(world: World) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection((world.host, world.port), DEADLINE_S) as link, pytest.raises(ssl.SSLError):
        context.wrap_socket(link)
    folder = world.home.root / "tls"  # the system's OpenSSL may refuse it by itself
    assert tls.context(folder / "certificate.pem", folder / "key.pem").minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_node_that_cannot_listen_says_why(tmp_path: Path, world: World) -> None:
    for line, word in (
        (f'listen = "{world.host}:{world.port}"', "cannot listen"),
        ('listen = "everywhere"', "is no HOST:PORT"),
        ('listen = "127.0.0.1:0"\ntls_certificate = "/nowhere.pem"\ntls_key = "/nowhere.key"', "/nowhere.pem"),
        ('tls_key = "/nowhere.key"', "both or neither"),
        ('group = "no-such-group"', "there is no group"),
        ("connections = 0", "connections"),
    ):
        home = Home(tmp_path / "home", tmp_path / "cache").make()
        (home.root / "settings.toml").write_text(f"[node]\n{line}\n")
        with pytest.raises(Unavailable) as error:
            ensure_running(home)
        assert word in str(error.value)


# -- who may do what -------------------------------------------------------------------------------------------------
def test_over_tcp_nothing_is_for_strangers(world: World) -> None:
    """Every route there is, and what is none."""
    for route in (*RULES, "GET /v1/nothing", "GET /"):
        method, path = route.split()
        for token in (None, "", "x", world.bob[:-1], world.bob + "A", f"{world.bob[:19]}{world.ann[19:]}"):
            told = world.ask(method, path.format(ref="box", name="box"), token)
            assert (told.status, told.code) == (401, "unauthorized"), route


@pytest.mark.parametrize("route", sorted(RULES))
def test_every_route_asks_for_its_scope(world: World, route: str) -> None:
    """What a scope may not do is refused before anything is looked at, and another's sandbox is not there."""
    method, path = route.split()
    access = RULES[route].access
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    upgrade |= {"Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    for scope, token in ((Scope.OWN, world.bob), (Scope.READ, world.reader)):
        if access not in MAY[scope]:
            told = world.ask(method, path.format(ref="hers", name="hers"), token, **upgrade)
            assert (told.status, told.code) == (403, "no-rights")
    if access in MAY[Scope.OWN] and "{ref}" in path:
        bodies = {"rename": {"name": "x"}, "exec": {"command": ["true"]}}
        body = json.dumps(bodies.get(path.rpartition("/")[2], {})).encode() if method == "POST" else None
        of_hers, of_box = world.of_hers.digest, world.of_box.digest
        for ref in (HERS, HERS[:5], "hers", BOX, "box", of_hers, of_hers[:20], of_box.removeprefix("sha256:")[:12]):
            told = world.ask(method, path.format(ref=ref) + "?path=/etc", world.bob, body, **upgrade)
            assert (told.status, told.code) == (404, "not-found"), ref
            assert BOX not in told.body.decode().replace(ref, "") and HERS not in told.body.decode().replace(ref, "")


def test_a_token_sees_its_own_only(tidy: World) -> None:
    ann, bob = tidy.reached_with(tidy.ann), tidy.reached_with(tidy.bob)
    assert names(ann) == {"hers"} and names(bob) == set()
    assert names(tidy.client) == names(tidy.reached_with(tidy.admin)) == names(tidy.reached_with(tidy.reader))
    assert {one.digest for one in ann.store.list()} == {tidy.of_hers.digest}
    assert bob.store.list() == [] and bob.store.tree() == []
    assert [node.name for node in ann.store.tree() if node.kind == "snapshot"] == [tidy.of_hers.digest]
    assert ann.system()["sandboxes"] == {"suspended": 1} and bob.system()["sandboxes"] == {}
    assert ann.get("hers").owner and not tidy.client.get("box").owner
    assert ann.store.inspect("hers")["named_by"] == ["hers"]
    for source in ("hers", HERS, tidy.of_hers.digest, tidy.of_hers.digest[7:15]):
        with pytest.raises(NotFound):
            bob.fork(source, [Fork()])
        with pytest.raises(NotFound):
            bob.resume("hers", snapshot=source)
    with pytest.raises(NotFound):
        bob.remove("hers", force=True)


def test_names_are_each_owners_own(tidy: World) -> None:
    """That a name is taken would tell of what is not there."""
    ann, bob = tidy.reached_with(tidy.ann), tidy.reached_with(tidy.bob)
    his = bob.create(SandboxSpec(image="tiny", command=["/bin/true"], name="hers"))
    assert bob.get("hers").id == his.id and ann.get("hers").id == HERS
    with pytest.raises(PerdureError, match="ambiguous"):
        tidy.client.get("hers")
    assert tidy.client.get(his.id).owner == bob.get("hers").owner
    local = tidy.client.create(SandboxSpec(image="tiny", command=["/bin/true"], name="hers"))
    assert tidy.client.get("hers").id == local.id  # those of nobody in particular come first
    assert bob.rename("hers", "box").name == "box" and tidy.client.get("box").id == BOX
    with pytest.raises(PerdureError, match="taken"):
        bob.create(SandboxSpec(image="tiny", command=["/bin/true"], name="box"))
    tidy.client.rename(his.id, "other")
    assert bob.get("other").id == his.id


def test_events_are_of_ones_own(tidy: World) -> None:
    began = time.time()
    bob = tidy.reached_with(tidy.bob)
    heard: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        try:
            for event in bob.events(since=began):
                heard.put(f"{event.kind} {event.details.get('name')}")
        except Unavailable:
            pass  # the node ended, after all tests

    threading.Thread(target=listen, daemon=True).start()
    tidy.client.create(SandboxSpec(image="tiny", command=["/bin/true"], name="local"))
    tidy.reached_with(tidy.ann).rename("hers", "hers2")
    tidy.reached_with(tidy.ann).rename("hers2", "hers")
    bob.create(SandboxSpec(image="tiny", command=["/bin/true"], name="his"))
    bob.remove("his")
    assert [heard.get(timeout=DEADLINE_S) for _ in range(2)] == ["sandbox.created his", "sandbox.removed his"]
    everything = [event.kind for event in tidy.client.events(follow=False, since=began)]
    assert everything.count("sandbox.renamed") == 2


def test_who_reads_changes_nothing(tidy: World) -> None:
    reader = tidy.reached_with(tidy.reader)
    assert reader.get("hers").id == HERS and reader.disk_use() and list(reader.logs("hers")) == []
    for act in (
        lambda: reader.create(TINY),
        lambda: reader.remove("hers"),
        lambda: reader.exec_detached("hers", ExecSpec(command=["true"])),
        lambda: reader.attach("hers"),
        lambda: reader.border.tokens(),
        lambda: reader.remove_image("tiny"),
        reader.shutdown,
    ):
        with pytest.raises(NoRights):
            act()


def test_where_calls_go_is_for_who_may_do_everything(tidy: World) -> None:
    """Else a guest's calls would reach what only the node can: its own socket, say."""
    calls = CallsEndpoint(
        url=f"unix:{tidy.home.socket('fcrund')}:/v1/system/shutdown", run_id="r", epoch=1, token="t0p"
    )
    spec = SandboxSpec(image="tiny", command=["/bin/true"], calls=calls)
    with pytest.raises(NoRights, match="calls"):
        tidy.reached_with(tidy.bob).create(spec)
    with pytest.raises(NoRights, match="calls"):
        tidy.reached_with(tidy.ann).resume("hers", calls=calls)
    made = tidy.reached_with(tidy.admin).create(spec)
    assert made.spec.calls is not None
    assert tidy.reached_with(tidy.reader).get(made.id).spec.calls is None  # there is a token in it
    assert "t0p" not in tidy.ask("GET", "/v1/sandboxes", tidy.reader).body.decode()


# -- tokens ----------------------------------------------------------------------------------------------------------
def test_tokens_are_kept_hashed(world: World) -> None:
    path = world.home.root / "tokens.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = path.read_text()
    for token in (world.ann, world.bob, world.reader, world.admin):
        assert token.split("_", 2)[2] not in kept and token.split("_")[1] in kept
    assert "sha256" in kept and "SECRET" not in str(world.client.border.tokens())


def test_tokens_are_made_listed_and_removed(world: World) -> None:
    def fcrun(*argv: str) -> tuple[int, str, str]:
        return world.fcrun("", *argv, FCRUN_HOST=f"unix://{world.home.socket('fcrund')}")

    status, out, err = fcrun("token", "create", "--name", "ci", "--scope", "read", "--expires", "30d")
    assert (status, err) == (0, "")
    token = out.strip()
    assert names(world.reached_with(token)) >= {"box", "hers"}
    rows = [line.split() for line in fcrun("token", "ls")[1].splitlines()]
    assert rows[0][:4] == ["TOKEN", "ID", "NAME", "SCOPE"]
    assert [token.split("_")[1], "ci", "read"] in [row[:3] for row in rows] and rows[1][-3:] == ["in", "4", "weeks"]
    for argv, word in (
        (("create", "--name", "ci"), "already"),
        (("create", "--name", "a/b"), "invalid token name"),
        (("create", "--expires", "soon"), "--expires"),
        (("create", "--expires", "0s"), "expire"),
        (("create", "--scope", "most"), "--scope"),
        (("rm", "nope"), "no such token"),
    ):
        status, _, said = fcrun("token", *argv)
        assert status == 125 and word in said, argv
    assert fcrun("token", "rm", "ci") == (0, "ci\n", "")
    with pytest.raises(Unauthorized):
        world.reached_with(token).list()
    made = json.loads(fcrun("token", "create", "--format", "json")[1])
    assert made["scope"] == "own" and made["name"] == f"token-{made['id']}" and made["token"].startswith("fcrun_")
    assert world.fcrun(world.admin, "token", "rm", made["id"])[0] == 0  # also from elsewhere, with scope all
    assert made["id"] not in fcrun("token", "ls", "-q")[1]


def test_a_token_expires(world: World) -> None:
    token = world.token(expires_s=0.5, name="brief")
    client = world.reached_with(token)
    stream = client.events()
    ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def listen() -> None:
        try:
            list(stream)
            ended.put(None)
        except PerdureError as error:
            ended.put(error)

    threading.Thread(target=listen, daemon=True).start()
    assert isinstance(ended.get(timeout=DEADLINE_S), Unavailable | Unauthorized | None)  # what it has open ends too
    with pytest.raises(Unauthorized, match="expired"):
        client.list()
    world.client.border.remove_token("brief")


def test_a_renewed_token_keeps_its_sandboxes(world: World) -> None:
    token = world.token(name="older", expires_s=3600)
    made = world.reached_with(token).create(TINY)
    local = {"FCRUN_HOST": f"unix://{world.home.socket('fcrund')}"}
    status, out, err = world.fcrun("", "token", "renew", "older", "--expires", "1h", **local)
    assert (status, err) == (0, "") and out.split("_")[1] == token.split("_")[1]
    with pytest.raises(Unauthorized):
        world.reached_with(token).list()
    renewed = world.reached_with(out.strip())
    assert [info.id for info in renewed.list()] == [made.id]
    renewed.remove(made.id)
    assert world.fcrun("", "token", "renew", "nope", **local)[0] == 125
    world.client.border.remove_token("older")


def test_what_a_removed_token_has_open_ends(world: World) -> None:
    token = world.token(name="gone")
    with world.connect() as link:
        link.sendall(f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        assert b"200 OK" in link.recv(65536)  # it is being served
        world.client.border.remove_token("gone")
        try:
            while link.recv(65536):
                pass
        except OSError:
            pass  # it was cut off


def test_tokens_outlive_the_node_and_damage_lets_nobody_in(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    with outside_node(home) as node:
        token = node.token("all", "kept")
    with outside_node(home) as node:
        assert node.reached_with(token).list() == []
    file = home.root / "tokens.json"
    whole = file.read_bytes()
    for damaged in (b"", whole[:-3], b'{"version":99,"tokens":[]}', whole.replace(b'"scope":"all"', b'"scope":"god"')):
        file.write_bytes(damaged)
        with outside_node(home) as node:
            with pytest.raises(Unauthorized):
                node.reached_with(token).list()
            with pytest.raises(PerdureError, match=r"tokens\.json"):
                node.token()
            assert node.client.list() == []  # the node itself serves who is here
        assert file.read_bytes() == damaged  # nothing is overwritten


def test_a_token_over_the_unix_socket_takes_rights_away(world: World) -> None:
    local = {"FCRUN_HOST": f"unix://{world.home.socket('fcrund')}"}
    assert world.fcrun("", "ps", "-aq", **local)[1].split() != []
    assert world.fcrun(world.bob, "ps", "-aq", **local)[1].split() == []
    status, _, said = world.fcrun("nonsense", "ps", **local)
    assert status == 125 and "no token" in said


# -- the group -------------------------------------------------------------------------------------------------------
GROUP_GID = 1  # daemon: every Debian has it


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_group_may_use_the_socket_and_nothing_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent != Path("/") and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    (home.root / "perdure.db").write_bytes(b"x")
    (home.root / "settings.toml").write_text('[node]\ngroup = "daemon"\n')

    def as_user(gid: int, work: Callable[[], str]) -> str:
        """What ``work`` gives for a user of that group, and of no other."""
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.setgroups([])
                os.setgid(gid)
                os.setuid(65534)
                try:
                    said = work()
                except (PerdureError, OSError) as error:
                    said = f"{type(error).__name__}: {error}"
                os.write(writer, said.encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as told:
            said = told.read()
        os.waitpid(child, 0)
        return said

    def reads(path: Path) -> Callable[[], str]:
        return lambda: "read " + path.read_bytes().decode()

    def lists(path: Path) -> Callable[[], str]:
        return lambda: "listed " + " ".join(map(str, path.iterdir()))

    ensure_running(home)
    client = NodeClient(home)
    try:
        assert as_user(GROUP_GID, lambda: str(client.list())) == "[]"
        refused = as_user(65534, lambda: str(client.list()))
        assert refused.startswith("NoRights: permission denied") and "usermod -aG daemon" in refused
        assert as_user(65534, lambda: str(ensure_running(home))).startswith("NoRights: permission denied")
        for work in (
            lists(home.root), lists(home.run), lists(home.sandboxes), reads(home.root / "perdure.db"),
            reads(home.run / "fcrund.log"), reads(home.root / "settings.toml"), reads(home.root / "headroom"),
        ):  # fmt: skip
            assert as_user(GROUP_GID, work).startswith("PermissionError"), work
        client.shutdown()
        (home.root / "settings.toml").unlink()
        ensure_running(home)
        refused = as_user(GROUP_GID, lambda: str(client.list()))
        assert refused.startswith("NoRights: permission denied") and "[node] group" in refused
    finally:
        client.shutdown()


def test_bad_settings(tmp_path: Path) -> None:
    from perdure.node import settings

    home = Home(tmp_path / "home", tmp_path / "cache").make()
    for line, word in (("group = 7", "group"), ("patience_s = -1", "patience_s"), ("lissen = 1", "known are")):
        (home.root / "settings.toml").write_text(f"[node]\n{line}\n")
        with pytest.raises(InvalidValue, match=word):
            settings.load(home, {})


def test_answers_end_where_they_should(world: World) -> None:
    """Two requests over one connection."""
    with world.connect() as link:
        for _ in range(2):
            head = f"GET /v1/images HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.bob}\r\n\r\n"
            link.sendall(head.encode())
            assert answer(link).status == 200


def test_classes_are_used() -> None:
    assert {rule.access for rule in RULES.values()} == set(Access)

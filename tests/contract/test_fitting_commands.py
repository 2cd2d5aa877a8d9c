"""How a sandbox wishes to find its machine, against a real node that starts none; what its log shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient
from perdure.errors import InvalidValue
from perdure.execution.sandboxes.logfile import LogFile
from perdure.model import SandboxSpec, Ulimit
from perdure.testing.commands import Fcrun
from perdure.testing.tinynodes import new_home, root_tar, tiny_node


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeClient]:
    with tiny_node(new_home(tmp_path_factory.mktemp("options"))) as client:
        client.import_image("marked", root_tar(), changes=["ENV COLOUR=red PLAIN=1", "LABEL made=here team=image"])
        yield client


@pytest.fixture
def fcrun(client: NodeClient) -> Fcrun:
    return Fcrun(client.home)


OPTIONS = [
    *("--read-only", "--init", "--shm-size", "64m", "--group-add", "audio", "--add-host", "db=10.0.0.7"),
    *("--ulimit", "nofile=1024:2048", "--ulimit", "core=-1", "--sysctl", "net.core.somaxconn=99"),
    *("--cap-drop", "all", "--cap-add", "chown", "--security-opt", "no-new-privileges:true", "--pids-limit", "64"),
    *("--stop-signal", "QUIT", "--stop-timeout", "-1", "--dns-search", "example.org", "--dns-option=ndots:2"),
    *("--log-driver", "local", "--log-opt", "labels=team"),
]


def test_it_is_kept_and_shown_in_dockers_words(client: NodeClient, fcrun: Fcrun) -> None:
    made = fcrun.said("create", "--name", "fitted", *OPTIONS, "tiny", "true").strip()
    client.shutdown()  # the next one knows it, too
    (shown,) = json.loads(fcrun.said("inspect", made))
    host = shown["HostConfig"]
    assert (host["ReadonlyRootfs"], host["Init"], host["Privileged"]) == (True, True, False)
    assert (host["ShmSize"], host["GroupAdd"], host["ExtraHosts"]) == (64 << 20, ["audio"], ["db:10.0.0.7"])
    assert host["Ulimits"] == [
        {"Name": "nofile", "Hard": 2048, "Soft": 1024},
        {"Name": "core", "Hard": -1, "Soft": -1},
    ]
    assert (host["CapDrop"], host["CapAdd"], host["PidsLimit"]) == (["ALL"], ["CAP_CHOWN"], 64)
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert (host["Dns"], host["DnsSearch"], host["DnsOptions"]) == ([], ["example.org"], ["ndots:2"])
    assert (shown["Config"]["StopSignal"], shown["Config"]["StopTimeout"]) == ("QUIT", -1)
    assert host["Sysctls"] == {"net.core.somaxconn": "99"}
    assert host["LogConfig"] == {"Type": "local", "Config": {"labels": "team"}}
    assert fcrun.said("inspect", "-f", '{{index .HostConfig.Sysctls "net.core.somaxconn"}}', made) == "99\n"


def test_the_signal_is_the_images_where_nothing_else_is_said(client: NodeClient, fcrun: Fcrun) -> None:
    client.import_image("asks", root_tar(), changes=["STOPSIGNAL SIGQUIT"])
    for argv, signal in ((["asks"], "SIGQUIT"), (["--stop-signal", "USR1", "asks"], "USR1"), (["tiny"], "")):
        made = fcrun.said("create", *argv, "true").strip()
        assert fcrun.said("inspect", "-f", "{{.Config.StopSignal}}", made) == f"{signal}\n"


def test_one_that_wishes_for_nothing_is_as_ever(client: NodeClient, fcrun: Fcrun) -> None:
    made = fcrun.said("create", "tiny", "true").strip()
    record = json.loads((client.home.sandboxes / made / "sandbox.json").read_bytes())
    assert set(record["spec"]) == {"image", "command", "cpus"}  # what an older node wrote reads the same
    (shown,) = json.loads(fcrun.said("inspect", made))
    host = shown["HostConfig"]
    assert (host["ReadonlyRootfs"], host["ExtraHosts"], host["Ulimits"], host["Init"]) == (False, None, [], None)
    assert (host["ShmSize"], host["LogConfig"]["Type"]) == (256 << 20, "json-file")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--add-host", "db"], "bad format for add-host"),
        (["--add-host", "h:host-gateway"], "does not reach the host"),
        (["--ulimit", "nofiles=1"], "invalid ulimit type: 'nofiles'"),
        (["--ulimit", "core=2:1"], "soft limit must be less than or equal to hard limit: 2 > 1"),
        (["--sysctl", "../x=1"], "no name of a kernel parameter"),
        (["--log-driver", "syslog"], "log driver syslog"),
        (["--log-opt", "max-size=10m"], "a log is kept whole"),
        (["--privileged"], "root may do everything"),
    ],
)
def test_what_cannot_be_makes_nothing(client: NodeClient, fcrun: Fcrun, argv: list[str], words: str) -> None:
    before = [info.id for info in client.list()]
    for command in ("create", "run"):
        status, out, said = fcrun(command, *argv, "tiny", "true")
        assert (status, out) == (125, "") and words in said
    assert [info.id for info in client.list()] == before


def test_the_api_refuses_it_too(client: NodeClient) -> None:
    for spec in (
        SandboxSpec(image="tiny", ulimits=[Ulimit(name="x", soft=1, hard=1)]),
        SandboxSpec(image="tiny", sysctls={"a": "b"}),
        SandboxSpec(image="tiny", extra_hosts=["x"]),
    ):
        with pytest.raises(InvalidValue):
            client.create(spec)


def test_the_details_of_a_log(client: NodeClient, fcrun: Fcrun) -> None:
    given = ["-l", "team=a b", "-l", "other=1", "-e", "COLOUR=gr=ün", "-e", "CITY=x,y"]
    choice = ["--log-opt", "labels=team,none,made", "--log-opt", "env-regex=^C"]
    log_of(client, marked := fcrun.said("create", *given, *choice, "marked", "true").strip())
    details = "CITY=x%2Cy,COLOUR=gr%3D%C3%BCn,made=here,team=a+b"
    assert fcrun.said("logs", "--details", marked) == f"{details} one\n{details} two\n"
    first = fcrun.said("logs", "--details", "-t", marked).splitlines()[0]
    assert first.split(" ", 1)[0].endswith("Z") and first.split(" ", 1)[1] == f"{details} one"
    assert fcrun.said("logs", marked) == "one\ntwo\n"
    log_of(client, plain := fcrun.said("create", *given, "marked", "true").strip())
    assert fcrun.said("logs", "--details", plain) == " one\n two\n"  # as docker


def log_of(client: NodeClient, ref: str) -> None:
    """As if it had written this."""
    log = LogFile(client.home.sandboxes / ref / "log")
    log.append(1, b"one\ntw")
    log.append(1, b"o\n")
    log.close()


def test_the_file_with_the_id(client: NodeClient, fcrun: Fcrun, tmp_path: Path) -> None:
    file = tmp_path / "id"
    made = fcrun.said("create", "--cidfile", str(file), "tiny", "true").strip()
    assert file.read_text() == made
    before = [info.id for info in client.list()]
    status, out, said = fcrun("create", "--cidfile", str(file), "tiny", "true")
    assert (status, out) == (125, "") and "File exists" in said
    assert [info.id for info in client.list()] == before

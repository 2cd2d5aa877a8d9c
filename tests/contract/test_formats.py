"""Formats and filters as docker users type them, against a real node; nothing here needs a machine."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from perdure.execution.sandboxes.logfile import LogFile
from perdure.execution.sandboxes.record import KeptSnapshot
from perdure.model import SandboxSpec, SandboxState
from perdure.testing.commands import Fcrun
from perdure.testing.sandboxes import sleeping
from perdure.testing.snapshots import BLOCKS, Bench, block, blocks_of
from perdure.testing.tinynodes import new_home, tiny_node

BOX, DONE, BROKEN = "b0b0b0b0b0b0", "d0d0d0d0d0d0", "e0e0e0e0e0e0"

# https://docs.docker.com/reference/cli/docker/container/ls/#format, and /image/ls/#format
PS_FIELDS = [
    *("ID", "Image", "Command", "CreatedAt", "RunningFor", "Ports", "State", "Status", "Size", "Names", "Labels"),
    *("Mounts", "Networks"),
]
IMAGE_FIELDS = ["ID", "Repository", "Tag", "Digest", "CreatedSince", "CreatedAt", "Size"]
# of https://docs.docker.com/reference/cli/docker/inspect/ and what its API documents, as far as sandboxes have it
INSPECT_FIELDS = [
    *("Id", "Created", "Path", "Args", "Image", "Name", "RestartCount", "Driver", "Platform", "Mounts"),
    *("State.Status", "State.Running", "State.Paused", "State.Restarting", "State.OOMKilled", "State.Dead"),
    *("State.Pid", "State.ExitCode", "State.Error", "State.StartedAt", "State.FinishedAt"),
    *("HostConfig.Memory", "HostConfig.NanoCpus", "HostConfig.AutoRemove"),
    *("HostConfig.IOMaximumBandwidth", "HostConfig.IOMaximumIOps"),
    *("Config.Hostname", "Config.User", "Config.Tty", "Config.OpenStdin", "Config.Env", "Config.Cmd", "Config.Image"),
    *("Config.WorkingDir", "Config.Entrypoint", "Config.Labels", "NetworkSettings.Ports", "NetworkSettings.Networks"),
]


@pytest.fixture(scope="module")
def fcrun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fcrun]:
    """Oldest first: ``box`` sleeps, ``done`` exited with 0, ``broken`` with 3, ``new`` was created."""
    home = new_home(tmp_path_factory.mktemp("formats"))
    bench = Bench(home.root)
    template = bench.template(blocks_of([1] * BLOCKS))
    for number, (sandbox_id, name) in enumerate(((BOX, "box"), (DONE, "done"), (BROKEN, "broken"))):
        snapshot = bench.capture(template, {3: block(7 + number)}, blocks_of(range(9)), sandbox_id=sandbox_id)
        made: dict[str, object] = {"snapshots": [KeptSnapshot(info=snapshot.info())], "created": 1000.0 + number}
        if name != "box":
            status = {"done": 0, "broken": 3}[name]
            made |= {"state": SandboxState.EXITED, "finished": 2000.0, "exit_status": status, "cause": "exit"}
        spec = SandboxSpec(image="tiny", command=["sleep", "3"], labels={"tier": name, "com.example/own": "yes"})
        sleeping(home.sandboxes, sandbox_id, name, [snapshot], spec=spec, **made)
    with tiny_node(home) as client:
        client.create(SandboxSpec(image="tiny", command=["/bin/true", "with", "many", "words", "in it"], name="new"))
        yield Fcrun(home)


def names(fcrun: Fcrun, *argv: str) -> list[str]:
    return fcrun.said("ps", "--format", "{{.Names}}", *argv).split()


def test_dockers_fields_of_ps(fcrun: Fcrun) -> None:
    template = "\\t".join(f"{{{{.{field}}}}}" for field in PS_FIELDS)
    head, row = fcrun.said("ps", "--format", f"table {template}").splitlines()
    assert " ".join(head.split()) == (
        "SANDBOX ID IMAGE COMMAND CREATED AT CREATED PORTS STATE STATUS SIZE NAMES LABELS MOUNTS NETWORKS"
    )
    assert row.startswith(f'{BOX}   tiny    "sleep 3"')
    assert fcrun.said("ps", "--format", "table {{.Names}}\\t{{.Status}}").splitlines()[0].split() == ["NAMES", "STATUS"]
    assert fcrun.said("ps", "--format", 'table {{.Names}}\t{{.Label "tier"}}') == "NAMES   TIER\nbox     box\n"
    assert fcrun.said("ps", "--format", '{{.Names}}={{.Label "tier"}}{{.Label "none"}};') == "box=box;\n"
    assert fcrun.said("ps", "--format", "{{json .Names}} {{upper .State}} {{len .ID}}") == '"box" SUSPENDED 12\n'
    row = json.loads(fcrun.said("ps", "--format", "json"))
    assert set(PS_FIELDS) <= set(row) and row["Names"] == "box" and row["state"] == "suspended"
    assert fcrun.said("ps", "-s", "--format", "{{.Size}}").strip().endswith(")")
    assert "SIZE" in fcrun.said("ps", "-s").splitlines()[0]


def test_dockers_fields_of_images(fcrun: Fcrun) -> None:
    for field in IMAGE_FIELDS:
        assert fcrun.said("images", "--format", f"{{{{.{field}}}}}").strip()
    assert fcrun.said("images", "--format", "{{.Repository}}:{{.Tag}}") == "tiny:latest\n"
    assert set(IMAGE_FIELDS) <= set(json.loads(fcrun.said("images", "--format", "json")))


def test_dockers_fields_of_inspect(fcrun: Fcrun) -> None:
    lines = fcrun.said("inspect", "-f", "\n".join(f"{field}={{{{.{field}}}}}" for field in INSPECT_FIELDS), "broken")
    assert [line.partition("=")[0] for line in lines.splitlines()] == INSPECT_FIELDS
    (found,) = json.loads(fcrun.said("inspect", "broken"))
    for field in INSPECT_FIELDS:
        at = found
        for part in field.split("."):
            at = at[part]
    for template, said in (
        ("{{.State.Status}} {{.State.ExitCode}} {{.State.Running}}", "exited 3 false"),
        ('{{index .Config.Labels "com.example/own"}}', "yes"),
        ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}} {{end}}", "com.example/own=yes tier=broken "),
        ('{{join .Config.Cmd " "}} {{.Path}} {{.Args}}', "sleep 3 sleep [3]"),
        ("{{json .Config.Cmd}}", '["sleep","3"]'),
        ("{{.Name}} {{.Id}}", f"/broken {BROKEN}"),
        ("{{.State.FinishedAt}}", "1970-01-01T00:33:20.000000000Z"),
        ("{{.name}} {{.state}} {{.exit_status}}", "broken exited 3"),
    ):
        assert fcrun.said("inspect", "--format", template, "broken") == said + "\n"
    status, out, said = fcrun("inspect", "-f", "{{.State.Staus}}", "broken")
    assert (status, out) == (125, "") and "Did you mean .Status?" in said
    status, _, said = fcrun("inspect", "-f", "{{range .Args}}", "broken")
    assert status == 125 and "there is no {{end}}" in said


def test_other_lists_take_templates_too(fcrun: Fcrun) -> None:
    assert (
        fcrun.said("version", "--format", "{{.Client.Version}}{{println}}").strip()
        == fcrun.said("version", "--short").split()[-1]
    )
    assert json.loads(fcrun.said("version", "-f", "json"))["Server"]["Version"]
    assert (
        fcrun.said("info", "-f", "{{.Containers}} {{.ContainersRunning}} {{.ContainersStopped}} {{.Images}}")
        == "4 0 3 1\n"
    )
    assert len(fcrun.said("snapshot", "ls", "--format", "{{.ID}}").splitlines()) == 3


def test_filters(fcrun: Fcrun) -> None:
    everyone = ["new", "broken", "done", "box"]
    assert names(fcrun, "-a") == everyone
    assert names(fcrun) == ["box"]
    assert names(fcrun, "-n", "2") == ["new", "broken"]
    assert names(fcrun, "-l") == ["new"]
    assert names(fcrun, "-f", "status=exited") == ["broken", "done"]
    assert names(fcrun, "-f", "status=exited", "-f", "status=created") == ["new", "broken", "done"]
    assert names(fcrun, "-f", "exited=3") == ["broken"]
    assert names(fcrun, "-f", "exited=3", "-f", "exited=0") == ["broken", "done"]
    assert names(fcrun, "-a", "-f", "label=tier=done") == ["done"]
    assert names(fcrun, "-a", "-f", "label=tier", "-f", "label=com.example/own=yes") == ["broken", "done", "box"]
    assert names(fcrun, "-a", "-f", "label=tier=done", "-f", "label=tier=box") == []
    assert names(fcrun, "-f", "before=done") == ["box"]
    assert names(fcrun, "-f", "since=done") == ["new", "broken"]
    assert names(fcrun, "-f", f"since={BOX}", "-f", "before=new") == ["broken", "done"]
    assert names(fcrun, "-a", "-f", "name=^bo") == ["box"]
    assert names(fcrun, "-a", "-f", "name=bo", "-f", "name=new") == ["new", "box"]
    assert names(fcrun, "-a", "-f", "id=d0") == ["done"]
    assert names(fcrun, "-a", "-f", "ancestor=tiny") == names(fcrun, "-a", "-f", "ancestor=tiny:latest") or everyone
    assert fcrun.said("ps", "-aq", "-f", "name=done") == f"{DONE}\n"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("staus=exited", "Did you mean status=?"),
        ("status=exted", "no status 'exted'"),
        ("exited=x", "It is an exit status"),
        ("name=(", "regular expression"),
        ("before=nobody", "no such sandbox"),
        ("status", "Filters here"),
    ],
)
def test_a_wrong_filter_is_told(fcrun: Fcrun, given: str, words: str) -> None:
    status, out, said = fcrun("ps", "-a", "-f", given)
    assert (status, out) == (125, "") and words in said


def test_a_name_that_is_nearly_one(fcrun: Fcrun) -> None:
    status, out, said = fcrun("logs", "boxx")
    assert (status, out) == (
        125,
        "",
    ) and said == "fcrun: no such sandbox: boxx\n  Did you mean box? `fcrun ps -a` lists all.\n"
    assert "Did you mean" not in fcrun("logs", "zzzzzz")[2]


def test_several_go_on_after_one_that_fails(fcrun: Fcrun) -> None:
    assert fcrun("wait", "done", "nobody", "broken") == (125, "0\n3\n", fcrun("logs", "nobody")[2])
    for command in (("stop",), ("kill",), ("start",), ("rm", "-f", "-v"), ("restart",)):
        status, out, said = fcrun(*command, "nobody", "done" if command == ("stop",) else "nothing")
        assert (status, "nobody" in said) == ((0, False) if command[0] == "rm" else (125, True)), command
        assert out == {"stop": "done\n", "rm": "nobody\nnothing\n"}.get(command[0], "")


def test_logs_until(fcrun: Fcrun) -> None:
    log = LogFile(fcrun.home.sandboxes / DONE / "log")
    log.append(1, b"first\n")
    log.close()
    assert fcrun.said("logs", "done") == "first\n"
    assert fcrun.said("logs", "--until", "1000", "done") == fcrun.said("logs", "-f", "--until", "1000", "done") == ""
    assert fcrun.said("logs", "--until", str(time.time() + 60), "done") == "first\n"
    began = time.monotonic()
    assert fcrun.said("logs", "-f", "--until", str(time.time() + 1), "box") == ""  # it sleeps, and may write yet
    assert time.monotonic() - began >= 0.5
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z first\n", fcrun.said("logs", "-t", "done"))

"""Options of ``docker run`` about how a sandbox finds its machine, and those that cannot be here."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from perdure.cli import completing, fcrun
from perdure.cli.booleans import plain
from perdure.cli.fcrun import _fittings, _process, _refused, run
from perdure.errors import InvalidValue
from perdure.execution.sandboxes import fittings
from perdure.model import SandboxSpec, Ulimit


def spec(*argv: str) -> SandboxSpec:
    return _process.spec_of(fcrun.parser_of(fcrun.command_module("create")).parse_args([*argv, "image"]))


def test_what_is_given() -> None:
    found = spec(
        *("--read-only", "--init", "--shm-size=64m", "--group-add", "audio", "--group-add=7"),
        *("--add-host", "db:10.0.0.7", "--add-host=six=[::1]", "--add-host", "v6:fd00::2"),
        *("--ulimit", "nofile=1024", "--ulimit", "nproc=5:unlimited", "--ulimit", "core=-1", "--ulimit", "nofile=9:10"),
        *("--sysctl", "net.core.somaxconn=99", "--log-driver=json-file", "--log-opt", "labels=a,b", "--net", "none"),
    )
    assert (found.read_only, found.init, found.shm_bytes, found.groups) == (True, True, 64 << 20, ["audio", "7"])
    assert found.extra_hosts == ["db:10.0.0.7", "six:[::1]", "v6:fd00::2"]
    assert found.ulimits == [
        Ulimit(name="nofile", soft=9, hard=10),
        Ulimit(name="nproc", soft=5, hard=-1),
        Ulimit(name="core", soft=-1, hard=-1),
    ]
    assert (found.sysctls, found.networks) == ({"net.core.somaxconn": "99"}, ["none"])
    assert (found.log_driver, found.log_options) == ("json-file", {"labels": "a,b"})
    fittings.check(found)


def test_nothing_given_is_nothing_wished_for() -> None:
    assert spec() == _process.spec_of(fcrun.parser_of(fcrun.command_module("run")).parse_args(["image"]))
    usual, found = SandboxSpec(image="image"), spec()
    for field in ("read_only", "extra_hosts", "ulimits", "groups", "shm_bytes", "sysctls", "init", "log_driver"):
        assert getattr(found, field) == getattr(usual, field)
    assert fittings.steps(found) == fittings.late_steps(found) == []


@pytest.mark.parametrize("text", ["nofile", "nofile=", "nofile=many", "nofile=1:2:3", "nofile=:5", "nofile=5:"])
def test_what_is_no_ulimit(text: str) -> None:
    with pytest.raises(InvalidValue, match="--ulimit"):
        spec("--ulimit", text)


@pytest.mark.parametrize("text", ["lots", "g"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidValue, match="--shm-size"):
        spec("--shm-size", text)


@pytest.mark.parametrize("option", [option for one in _refused.REFUSED for option in one.options.split()])
@pytest.mark.parametrize("command", ["run", "create"])
def test_what_cannot_be_is_told_with_why_and_what_to_do(
    command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value = ["x"] if next(one for one in _refused.REFUSED if option in one.options.split()).takes_value else []
    assert fcrun.main([command, option, *value, "image", "true"]) == 125
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"fcrun: there is no {option}: ")
    assert said.err.count("\n") == 2  # why, and a line of what to do
    assert option not in fcrun.parser_of(fcrun.command_module(command)).format_help().split()
    assert option not in completing.candidates(fcrun.PROGRAM, [command, option[:-1]], lambda _: [])
    fcrun.main([command, f"{option}z" if option.startswith("--") else "--no", "image"])
    assert f"did you mean {option}?" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "create", "pull", "push"])
def test_no_signatures_are_verified_and_that_is_said(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = fcrun.parser_of(fcrun.command_module(command))
    for word in ("--disable-content-trust", "--disable-content-trust=true"):
        options = parser.parse_args(plain(parser, [word, "busybox"]))
        assert "busybox" in (getattr(options, "image", ""), getattr(options, "name", ""))
    assert "--disable-content-trust" not in parser.format_help()
    assert fcrun.main([command, "--disable-content-trust=false", "busybox"]) == 125
    assert "not verified here" in capsys.readouterr().err


def test_exec_knows_privileged_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert fcrun.main(["exec", "--privileged", "box", "true"]) == 125
    assert "root may do everything" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ("--ipc", "private"),
        ("--security-opt=seccomp=unconfined",),
        ("--security-opt", "no-new-privileges:false"),
        ("--pids-limit", "-1"),
        ("--memory-swap", "-1"),
        ("-m", "512m", "--memory-swap", "0.5g"),
    ],
)
def test_what_is_so_anyway_is_taken(argv: tuple[str, ...]) -> None:
    assert spec(*argv) == spec()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--security-opt", "seccomp=profile.json"), "--security-opt seccomp=profile.json: a profile of the host's"),
        (("--security-opt", "no-new-privileges", "--security-opt", "x"), "--security-opt x"),
        (("--memory-swap", "1g"), "no swap"),
        (("-m", "512m", "--memory-swap", "1g"), "no swap"),
    ],
)
def test_what_cannot_be_so(argv: tuple[str, ...], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        spec(*argv)


ALL = (1 << 64) - 1
RAW, BIND = 1 << 13, 1 << 10  # linux/capability.h


@pytest.mark.parametrize(
    ("argv", "mask"),
    [
        (("--cap-add", "SYS_ADMIN"), ALL),
        (("--cap-add", "all", "--cap-drop", "net_raw"), ALL & ~RAW),
        (("--cap-drop", "CAP_NET_RAW"), ALL & ~RAW),
        (("--cap-drop", "ALL"), 0),
        (("--cap-drop=ALL", "--cap-add=NET_BIND_SERVICE", "--cap-add", "cap_net_raw"), RAW | BIND),
        (("--cap-drop", "NET_RAW", "--cap-add", "NET_RAW"), ALL),
    ],
)
def test_capabilities_are_counted_from_all(argv: tuple[str, ...], mask: int) -> None:
    wish = spec(*argv, "--security-opt=no-new-privileges", "--pids-limit", "64")
    fittings.check(wish)
    told = [] if mask == ALL else [f"capabilities {mask:x}"]
    assert fittings.bounds(wish)["limits"] == [*told, "no-new-privileges"]
    assert fittings.steps(wish) == [("pids", "64")]
    assert all(name == "ALL" or name.startswith("CAP_") for name in (*wish.cap_add, *wish.cap_drop))


def test_a_template_has_its_own() -> None:
    given: dict[str, list[str]] = {
        "--ulimit": ["core=0"], "--add-host": ["a:1.1.1.1"], "--group-add": ["x"], "--shm-size": ["1m"],
        "--cap-add": ["all"], "--cap-drop": ["all"], "--security-opt": ["no-new-privileges"], "--pids-limit": ["5"],
        "--memory-swap": ["-1"], "--sysctl": ["a.b=c"], "--log-driver": ["local"],
        "--log-opt": ["labels=a"], "--read-only": [], "--init": [],
    }  # fmt: skip
    assert set(given) == set(_fittings.FIXED)
    for option, value in given.items():
        with pytest.raises(InvalidValue, match=f"--template t excludes {option}:"):
            run.run(fcrun.parser_of(fcrun.command_module("run")).parse_args(["--template", "t", option, *value]))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"extra_hosts": ["db"]}, "bad format for add-host: 'db'"),
    ({"extra_hosts": ["db:localhost"]}, "invalid IP address in add-host: 'localhost'"),
    ({"extra_hosts": ["a b:10.0.0.1"]}, "bad format"),
    ({"extra_hosts": ["a\n:10.0.0.1"]}, "bad format"),
    ({"extra_hosts": ["x:fe80::1%a\n1.2.3.4 evil"]}, "invalid IP address in add-host"),
    ({"extra_hosts": ["x:fe80::1%eth0"]}, "invalid IP address in add-host"),
    ({"extra_hosts": ["h:host-gateway"]}, "does not reach the host"),
    ({"dns_search": ["a b"]}, "no domain"),
    ({"dns_search": ["a\nnameserver 1.1.1.1"]}, "no domain"),
    ({"dns_options": ["ndots 2"]}, "resolv.conf"),
    ({"ulimits": [Ulimit(name="as", soft=1, hard=1)]}, "invalid ulimit type: 'as'"),
    ({"ulimits": [Ulimit(name="core", soft=2, hard=1)]}, "soft limit must be less than or equal to hard limit: 2 > 1"),
    ({"ulimits": [Ulimit(name="core", soft=-1, hard=1)]}, "soft limit"),
    ({"ulimits": [Ulimit(name="core", soft=-2, hard=-1)]}, "no limit"),
    ({"ulimits": [Ulimit(name="core", soft=1 << 63, hard=-1)]}, "no limit"),
    ({"ulimits": [Ulimit(name="nofile", soft=-1, hard=-1)]}, "at most 1048576 open files"),
    ({"sysctls": {"../../etc/passwd": "x"}}, "no name of a kernel parameter"),
    ({"sysctls": {"net/../x": "1"}}, "no name"),
    ({"sysctls": {"net": "1"}}, "no name"),
    ({"sysctls": {"net.x": ""}}, "no value"),
    ({"groups": ["a:b"]}, "neither a name nor a number"),
    ({"groups": ["x"] * 40}, "at most 32"),
    ({"shm_bytes": -1}, "shm_bytes"),
    ({"pids_max": -1}, "pids_max"),
    ({"pids_max": 1 << 30}, "pids_max"),
    ({"cap_drop": ["CAP_WHAT"]}, "unknown capability 'CAP_WHAT'"),
    ({"cap_add": [""]}, "unknown capability ''"),
    ({"log_driver": "syslog"}, "log driver syslog"),
    ({"log_options": {"max-size": "1m"}}, "log option max-size"),
    ({"log_options": {"labels-regex": "("}}, "no regular expression"),
]


@pytest.mark.parametrize(("wish", "words"), WRONG, ids=[words for _, words in WRONG])
def test_the_node_checks_it(wish: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        fittings.check(SandboxSpec(image="i", **wish))


def test_the_orders_for_the_guest() -> None:
    wish = spec("--add-host", "db=10.0.0.7", "--add-host", "six:[0::1]", "--shm-size", "1m", "--sysctl", "a.b=c d")
    assert fittings.steps(wish) == [
        ("append", "/etc/hosts", "10.0.0.7\tdb\n::1\tsix\n"),
        ("remount", "/dev/shm", "6", "size=1048576,mode=1777"),
        ("sysctl", "a.b", "c d"),
    ]
    resolver = spec("--dns-search", "a.org", "--dns-search", "b.org", "--dns-opt", "ndots:2", "--dns-option", "rotate")
    fittings.check(resolver)
    assert fittings.steps(resolver) == [("append", "/etc/resolv.conf", "search a.org b.org\noptions ndots:2 rotate\n")]
    none = spec("--dns-search", ".", "--dns-search=a.org")
    fittings.check(none)
    assert fittings.steps(none) == [("append", "/etc/resolv.conf", "search a.org\n")]
    assert fittings.steps(spec("--dns-search", ".")) == []  # as docker: no search line
    readable = fittings.late_steps(spec("--read-only"))
    assert [step[1] for step in readable] == ["/run", "/tmp", "/"]  # the root last: nothing is in its way by then
    assert fittings.bounds(spec("--ulimit", "core=1:-1", "--group-add", "x")) == {"limits": ["4 1 -1"], "groups": ["x"]}


def bound(target: str, flags: str = "0") -> tuple[str, ...]:
    return ("mount", target, "bind", target, flags, "", "0", "")


def test_what_is_written_below_what_is_not(tmp_path: Path) -> None:
    given = ["-v", f"{tmp_path}:/data", "-v", f"{tmp_path}:/etc/app:ro", "-v", f"{tmp_path}:/etc/app/state"]
    declared = ["/var/lib/db", "/data", "here/", "/"]
    made = [("mkdir", "/here", "755"), ("mkdir", "/var/lib/db", "755")]
    below = [bound("/etc/app", "1"), bound("/etc/app/state")]
    assert fittings.late_steps(spec(*given), declared) == [*made, *below]
    sealed = fittings.late_steps(spec("--read-only", *given), declared)
    assert [step for step in sealed if step[0] != "remount"] == [
        *made, bound("/data"), bound("/here"), below[0], bound("/etc/app/state"), bound("/var/lib/db"),
    ]  # fmt: skip
    assert sealed[-1][:2] == ("remount", "/")


def test_each_name_of_a_limit_is_the_kernels() -> None:
    for name, number in fittings.LIMITS.items():
        known = getattr(resource, f"RLIMIT_{name.upper()}", None)
        assert known in (None, number), name

"""fcrun's command line: Docker's ways of writing options, help, suggestions, exit statuses."""

from __future__ import annotations

import argparse
import io
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.cli import fcrun
from perdure.cli.fcrun import _copy, _format, _process
from perdure.errors import InvalidValue

REQUIRED = set(
    "run exec ps logs stop kill rm inspect wait cp suspend resume images import load version".split()  # noqa: SIM905
)


def parse(*argv: str) -> argparse.Namespace:
    return fcrun.parser_of(fcrun.command_module(argv[0])).parse_args(list(argv[1:]))


def test_every_command_follows_the_convention() -> None:
    assert set(fcrun.command_names()) >= REQUIRED
    for name in fcrun.command_names():
        command = fcrun.command_module(name)
        assert name == command.NAME
        assert command.HELP
        assert "\n" not in command.HELP
        assert command.GROUP in fcrun.PROGRAM.groups
        assert hasattr(command, "PROGRAM") or fcrun.parser_of(command).format_help()


def test_options_end_at_the_image() -> None:
    options = parse("run", "-it", "--rm", "-e", "A=1", "--name=box", "tiny", "ls", "-la", "--rm", "--", "x")
    assert (options.interactive, options.tty, options.rm, options.name) == (True, True, True, "box")
    assert (options.image, options.command) == ("tiny", ["ls", "-la", "--rm", "--", "x"])
    assert parse("exec", "-w", "/", "box", "sh", "-c", "ls").command == ["sh", "-c", "ls"]


def test_spec() -> None:
    spec = _process.spec_of(
        parse("run", "-m", "1g", "--cpus", "1.5", "--entrypoint", "", "-l", "a=b", "-u", "me", "tiny", "x")
    )
    assert (spec.memory_mib, spec.vcpus, spec.entrypoint, spec.labels) == (1024, 2, [], {"a": "b"})
    assert (spec.user, spec.command, spec.cpus) == ("me", ["x"], 1.5)
    whole = _process.spec_of(parse("run", "--cpus", "2", "tiny"))
    assert (whole.vcpus, whole.cpus) == (2, 0.0)  # its vCPUs are limit enough


@pytest.mark.parametrize(
    ("text", "mebibytes"),
    [("512m", 512), ("512M", 512), ("1g", 1024), ("1gb", 1024), ("0.5g", 512), ("104857600", 100)],
)
def test_sizes(text: str, mebibytes: int) -> None:
    assert _process.spec_of(parse("run", "-m", text, "tiny")).memory_mib == mebibytes


@pytest.mark.parametrize(
    ("text", "size"), [("10m", 10 << 20), ("512kb", 512 << 10), ("65536", 65536), ("1.5G", 3 << 29)]
)
def test_limits_of_disks(text: str, size: int) -> None:
    spec = _process.spec_of(parse("run", "--disk-bandwidth", text, "--disk-iops", "1000", "tiny"))
    assert (spec.disk_bytes_per_s, spec.disk_ops_per_s) == (size, 1000)
    assert _process.spec_of(parse("run", "tiny")).disk_bytes_per_s == 0


@pytest.mark.parametrize(
    "argv",
    [
        ("-m", "lots"),
        ("--cpus", "0"),
        ("--cpus", "none"),
        ("--cpus", "nan"),
        ("-e", "=x"),
        ("-e", "a b=c"),
        ("-l", "=x"),
        ("--disk", "g"),
        ("--disk-bandwidth", "fast"),
        ("--disk-bandwidth", "0"),
        ("--disk-bandwidth", "nan"),
        ("--disk-iops", "0"),
        ("--disk-iops", "1k"),
        ("--disk-iops", "1.5"),
    ],
)
def test_bad_values_name_their_option(argv: tuple[str, str]) -> None:
    with pytest.raises(InvalidValue, match=rf"{argv[0]}|--(memory|env|label)"):
        _process.spec_of(parse("run", *argv, "tiny"))


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=from file\nB=two=2\nHERE\n")
    monkeypatch.setenv("HERE", "yes")
    monkeypatch.delenv("GONE", raising=False)
    assert _process.environment(["A=1", "GONE"], [str(file)]) == {"A": "1", "B": "two=2", "HERE": "yes"}
    with pytest.raises(InvalidValue, match="env-file"):
        _process.environment([], [str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sond"], "'sond' is not a fcrun command"),
        (["suspnd"], "Did you mean 'suspend'?"),
        (["run"], "required: IMAGE"),
        (["run", "--no-such", "tiny"], "--no-such"),
        (["ps", "--filter", "colour=red"], "--filter"),
        (["run", "--device-write-bps", "/dev/sda:1mb", "tiny"], "--disk-bandwidth 10m"),
        (["create", "--device-read-bps=/dev/sda:1mb", "tiny"], "--disk-bandwidth 10m"),
        (["run", "--device-read-iops", "/dev/sda:100", "tiny"], "--disk-iops 1000"),
        (["run", "--device-write-iops", "/dev/sda:100", "tiny"], "--disk-iops 1000"),
        (["run", "--blkio-weight", "500", "tiny"], "the same weight"),
    ],
)
def test_own_failures_are_125_on_stderr(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fcrun.main(argv) == 125
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fcrun: ")
    assert words in err


def test_help_is_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    assert fcrun.main([]) == 0
    out = capsys.readouterr().out
    assert out.index("Common commands:") < out.index("Images:")
    for name in REQUIRED:
        assert f"\n  {name} " in out
    assert fcrun.main(["help", "run"]) == 0
    assert fcrun.main(["run", "--help"]) == 0
    assert "--memory" in capsys.readouterr().out


def test_format() -> None:
    row = {"ID": "1", "deep": {"er": [1]}}
    assert _format.fill("{{.ID}}: {{json .deep.er}} {{ .ID }}", row) == "1: [1] 1"
    with pytest.raises(InvalidValue, match="no field 'Nope'"):
        _format.fill("{{.Nope}}", row)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0B"), (999, "999B"), (14_200_000, "14.2MB"), (620_000_000, "620MB"), (1.5e12, "1.5TB")]
)
def test_sizes_read_as_dockers(count: float, text: str) -> None:
    assert _format.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (300, "5 minutes"),
     (3600, "About an hour"), (7200, "2 hours"), (200_000, "2 days")],
)  # fmt: skip
def test_durations_read_as_dockers(seconds: int, text: str) -> None:
    assert _format.ago(1000.0, lambda: 1000.0 + seconds) == text


def test_places() -> None:
    assert _copy.place("box:/etc") == ("box", "/etc")
    assert _copy.place("box:etc") == ("box", "/etc")
    assert _copy.place("./a:b") == (None, "./a:b")
    assert _copy.place("/a:b") == (None, "/a:b")
    assert _copy.place("-") == (None, "-")


def test_the_client_imports_nothing_heavy() -> None:
    """Start time is held by what is imported: a count of the clock would depend on the machine."""
    code = (
        "import sys, perdure.cli.fcrun.ps, perdure.cli.fcrun._node, perdure.client.node\n"
        "heavy = {'asyncio', 'aiohttp', 'wsproto', 'zstandard', 'tarfile', 'subprocess'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Sandbox:
    """A node with one file tree, as far as ``fcrun cp`` asks it; what a sandbox sends is its own affair."""

    def __init__(self, *members: tuple[str, bytes, int, str]) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, kind, mode, link in members:
                member = tarfile.TarInfo(name)
                member.type, member.mode, member.linkname = kind, mode, link
                tar.addfile(member)
        self.tar = packed.getvalue()

    def stat(self, ref: str, path: str, *, follow: bool = True) -> dict[str, Any]:
        return {"mode": stat.S_IFDIR | 0o755, "link": ""}

    def get_archive(self, ref: str, path: str) -> Iterator[bytes]:
        yield self.tar


@pytest.mark.parametrize("last", [("d/l", tarfile.DIRTYPE, 0o777, ""), ("d/l/x", tarfile.REGTYPE, 0o777, "")])
def test_a_sandbox_cannot_write_beside_the_target_of_a_copy(tmp_path: Path, last: Any) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (tmp_path / "target").mkdir()
    evil: Any = Sandbox(("d", tarfile.DIRTYPE, 0o755, ""), ("d/l", tarfile.SYMTYPE, 0o777, str(victim)), last)
    with pytest.raises(InvalidValue, match="through a symbolic link"):
        _copy.out_of(evil, "box", "/d", str(tmp_path / "target"), follow=False)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o700
    assert list(victim.iterdir()) == []


def test_labels_come_from_files_and_options(tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("# mine\n\na=1\nb=two words\nempty\n")
    spec = _process.spec_of(parse("run", "--label-file", str(tmp_path / "labels"), "-l", "a=2", "-l", "c", "tiny", "x"))
    assert spec.labels == {"a": "2", "b": "two words", "empty": "", "c": ""}
    with pytest.raises(InvalidValue, match=r"--label-file /nowhere"):
        _process.spec_of(parse("run", "--label-file", "/nowhere", "tiny", "x"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("300ms", 0.3), ("500us", 0.0005), ("2d", 172800)],
)
def test_when_it_sleeps(text: str, seconds: float) -> None:
    assert _process.spec_of(parse("run", "--suspend-after", text, "tiny", "x")).suspend_after_s == seconds


@pytest.mark.parametrize("text", ["5", "m", "-5m", "5x", "1h 30m", "five"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidValue, match="--suspend-after"):
        _process.spec_of(parse("run", f"--suspend-after={text}", "tiny", "x"))


def test_what_wakes_it() -> None:
    for text, reasons in (
        ("none", ()),
        ("exec", ("exec",)),
        ("connect,exec", ("exec", "connect")),
        ("connect", ("connect",)),
    ):
        assert _process.spec_of(parse("run", "--wake-on", text, "tiny", "x")).wake_on == reasons
    with pytest.raises(InvalidValue, match="--wake-on: 'exce'"):
        _process.spec_of(parse("run", "--wake-on", "exce", "tiny", "x"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("run", "--detch", "tiny"), "unknown flag: --detch; did you mean --detach?"),
        (("ps", "--fitler=x"), "unknown flag: --fitler; did you mean --filter?"),
        (("ps", "-z"), "unknown flag: -z\n"),
        (("ps", "more"), "unrecognized arguments: more"),
        (("container", "lss"), "Did you mean 'ls'?"),
    ],
)
def test_an_unknown_flag_is_told_with_what_was_meant(
    argv: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fcrun.main([*argv]) == 125
    said = capsys.readouterr()
    assert words in said.err and said.out == ""


def test_dockers_longer_names(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ls", "list", "ps", "run", "rm", "inspect", "logs"):
        assert fcrun.main(["container", name, "--help"]) == 0
    capsys.readouterr()
    assert fcrun.main(["container"]) == 0
    assert capsys.readouterr().out.count("List sandboxes:") == 1

"""scripts/system-packages against an apt that only writes down what it is asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "system-packages"
STUBS = {
    "dpkg-query": 'grep -qx "${@: -1}" $STATE/installed && printf installed',
    "apt-cache": 'test -e $STATE/lists || exit 1; [ "$2" != virtiofsd ] || test -e $STATE/virtiofsd',
    "apt-get": 'echo "$*" >>$STATE/calls; case $1 in update) touch $STATE/lists;; install) test -e $STATE/works;; esac',
    "sudo": 'echo sudo >>$STATE/calls; exec "$@"',
    "systemctl": "",
    "uname": "case $1 in -s) echo ${SYSTEM:-Linux};; -m) echo ${MACHINE:-x86_64};; esac",
    "id": "echo ${USER_ID:-0}",
}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    for name, text in STUBS.items():
        stub = tmp_path / name
        stub.write_text(f"#!/bin/bash\n{text}\n")
        stub.chmod(0o755)
    for name in ("installed", "calls", "works"):
        (tmp_path / name).touch()
    return tmp_path


def run(state: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{state}:{os.environ['PATH']}", "STATE": str(state), **environment}
    return subprocess.run([SCRIPT, *words], env=env, capture_output=True, text=True, timeout=30, check=False)


def calls(state: Path) -> list[str]:
    return [" ".join(line.split()[:1]) for line in (state / "calls").read_text().splitlines()]


def test_lists_are_fetched_once_when_apt_knows_nothing(state: Path) -> None:
    assert run(state).returncode == 0
    assert calls(state) == ["update", "install"]


def test_no_update_when_the_lists_are_there(state: Path) -> None:
    (state / "lists").touch()
    assert run(state).returncode == 0
    assert calls(state) == ["install"]


def test_nothing_is_done_when_nothing_is_missing(state: Path) -> None:
    (state / "lists").touch()
    (state / "installed").write_text(run(state, "--print").stdout)
    assert run(state, "--print").stdout == "nothing is missing\n"
    assert run(state).returncode == 0
    assert calls(state) == []


def test_what_only_tests_need_is_asked_for(state: Path) -> None:
    (state / "lists").touch()
    needed = run(state, "--print").stdout.split()
    assert "docker-registry" not in needed
    tests = ["docker-registry", "skopeo", "umoci", "postgresql", "iproute2", "nftables", "buildah"]
    tests += ["git", "btrfs-progs", "xfsprogs", "curl", "nodejs", "golang-go"]
    assert run(state, "--print", "--tests").stdout.split() == [*needed, *tests]
    (state / "lists").unlink()
    assert run(state, "--tests").returncode == 0  # and through the second try, with fresh lists
    (install,) = [line for line in (state / "calls").read_text().splitlines() if line.startswith("install")]
    assert "docker-registry" in install.split()


def test_a_word_that_it_does_not_know(state: Path) -> None:
    done = run(state, "--test")
    assert (done.returncode, done.stderr) == (2, "system-packages: what is --test?\n")
    assert calls(state) == []


def test_virtiofsd_is_a_package_or_qemus(state: Path) -> None:
    (state / "lists").touch()
    assert "qemu-system-common" in run(state, "--print").stdout.split()
    (state / "virtiofsd").touch()
    assert "virtiofsd" in run(state, "--print").stdout.split()


def test_a_failing_install_is_tried_once_more_with_fresh_lists(state: Path) -> None:
    (state / "works").unlink()
    (state / "lists").touch()
    done = run(state)
    assert done.returncode == 1
    assert "could not install" in done.stderr
    assert calls(state) == ["install", "update", "install"]


def test_a_user_goes_through_sudo(state: Path) -> None:
    (state / "lists").touch()
    assert run(state, USER_ID="1000").returncode == 0
    assert calls(state) == ["sudo", "install"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [({"SYSTEM": "Darwin"}, "need Linux, and this is Darwin"), ({"MACHINE": "riscv64"}, "this is riscv64")],
)
def test_other_machines_are_refused(state: Path, environment: dict[str, str], message: str) -> None:
    done = run(state, **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert calls(state) == []

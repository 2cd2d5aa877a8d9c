from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from perdure.errors import NoRights, Unsupported
from perdure.host import emulated, kvm, machine, probes
from perdure.host.paths import Home
from perdure.host.probes import Level
from perdure.host.virtiofs import Virtiofsd


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", tmp_path / "cache")


@pytest.fixture
def no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(Virtiofsd, "find", staticmethod(lambda *_: None))


def as_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_not_linux(system: str) -> None:
    with pytest.raises(Unsupported, match=f"need Linux, and this is {system}") as caught:
        machine.require_supported(system=system)
    assert "Linux VM" in caught.value.hint


@pytest.mark.parametrize("architecture", ["riscv64", "armv7l", "i686"])
def test_not_a_supported_processor(architecture: str) -> None:
    with pytest.raises(Unsupported, match=f"x86_64 and aarch64, and this machine is {architecture}"):
        machine.require_supported(architecture=architecture)


def test_the_wrong_machine_is_the_only_finding(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    (only,) = probes.examine(home)
    assert (only.name, only.level) == ("system", Level.PROBLEM)


def test_no_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch)
    found = probes.rights()
    assert found.level is Level.PROBLEM
    assert "needs root (this is user 1000)" in found.found
    assert "sudo" in found.advice
    with pytest.raises(NoRights):
        machine.require_root("it")


def test_no_kvm_and_no_qemu(no_qemu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    found = probes.emulation(needed=True)
    assert found.level is Level.PROBLEM
    assert "no qemu-system-x86_64 and no virtiofsd" in found.found
    assert "apt-get install qemu-system-x86" in found.advice
    with pytest.raises(Unsupported, match="KVM is not usable here"):
        emulated.find_programs()


def test_qemu_is_not_missed_where_kvm_works(no_qemu: None) -> None:
    assert probes.emulation(needed=False).level is Level.OK


def test_no_emulated_host_on_aarch64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(Unsupported, match="x86_64 only"):
        emulated.find_programs()


@pytest.mark.parametrize(
    ("free_gib", "level"), [(0.5, Level.PROBLEM), (2, Level.NOTE), (50, Level.OK)], ids=["none", "little", "enough"]
)
def test_disk_space(home: Home, monkeypatch: pytest.MonkeyPatch, free_gib: float, level: Level) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, int(free_gib * (1 << 30))))
    found = probes.space("cache", home.cache)
    assert found.level is level
    assert level is Level.OK or "PERDURE_CACHE" in found.advice


def test_assets_before_setup(home: Home) -> None:
    found, assets = probes.parts(home, thorough=True)
    assert assets is None
    assert (found.level, found.advice) == (Level.NOTE, "Run: fcrun setup")
    assert probes.virtualization(home, None).level is Level.NOTE


def test_missing_programs_name_their_packages() -> None:
    found = probes.programs(lambda name: None if name in ("mksquashfs", "lz4") else f"/bin/{name}")
    assert found.level is Level.PROBLEM
    assert found.advice == "Run: apt-get install squashfs-tools lz4"
    assert probes.programs(lambda name: None if name == "lz4" else name).level is Level.NOTE
    assert probes.programs(lambda name: name).level is Level.OK


def test_control_groups(tmp_path: Path) -> None:
    assert probes.control_groups(needed=True, mount=tmp_path).level is Level.NOTE
    assert probes.control_groups(needed=False, mount=tmp_path).level is Level.OK
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    assert probes.control_groups(needed=True, mount=tmp_path).found == f"at {tmp_path}"


def test_page_faults_of_machines_that_are_not_root(tmp_path: Path) -> None:
    device, setting = tmp_path / "userfaultfd", tmp_path / "setting"
    setting.write_text("0\n")
    if probes.page_faults(needed=False).found != "opens":
        pytest.skip("userfaultfd does not open here")
    found = probes.page_faults(needed=True, device=device, setting=setting)
    assert found.level is Level.PROBLEM and "sysctl vm.unprivileged_userfaultfd=1" in found.advice
    assert probes.page_faults(needed=False, device=device, setting=setting).level is Level.OK
    setting.write_text("1\n")
    assert probes.page_faults(needed=True, device=device, setting=setting).level is Level.OK
    setting.write_text("0\n")
    device.touch()
    assert probes.page_faults(needed=True, device=device, setting=setting).level is Level.OK


def test_jails() -> None:
    refused = ("sh", "-c", "echo 'unshare failed: Operation not permitted' >&2; exit 1")
    found = probes.jails(needed=True, argv=refused)
    assert (found.level, found.found) == (Level.PROBLEM, "unshare failed: Operation not permitted")
    assert probes.jails(needed=False, argv=refused).level is Level.OK
    assert probes.jails(needed=True, argv=("/nowhere/unshare",)).level is Level.PROBLEM
    assert probes.jails(needed=True, argv=("true",)).level is Level.OK


def test_clones_are_tried_and_leave_nothing(tmp_path: Path) -> None:
    found = probes.clones(tmp_path / "not" / "yet" / "there")
    assert found.level in (Level.OK, Level.NOTE)
    assert not list(tmp_path.iterdir())


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "boots", "reason"),
    [
        ("echo 'Linux version 6'; echo 'Kernel panic - not syncing: VFS: no root'; exec sleep 60", True, "booted in"),
        ("echo 'Linux version 6'; exec sleep 60", False, "did not boot within 1 s, although"),
        ("echo 'Error: KVM said no' >&2; exit 1", False, "Firecracker ended: Error: KVM said no"),
    ],
)
def test_trying_kvm(tmp_path: Path, text: str, boots: bool, reason: str) -> None:
    began = time.monotonic()
    verdict = kvm.try_boot(script(tmp_path / "firecracker", text), tmp_path / "vmlinux", timeout_s=1)
    assert time.monotonic() - began < 10
    assert verdict.boots is boots
    assert reason in verdict.reason


class Parts(NamedTuple):
    """What the verdict looks at of the assets."""

    firecracker: Path
    vmlinux: Path
    firecracker_version: str = "1.12.1"
    kernel_release: str = "6.1"


def test_the_verdict_is_kept_for_this_boot(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.cache.mkdir()
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm, "DEVICE", device)
    tried = tmp_path / "tried"
    program = script(tmp_path / "firecracker", f"echo x >>{tried}; echo 'Kernel panic - not syncing: VFS'")
    parts: Any = Parts(program, tmp_path / "vmlinux")
    assert kvm.verdict(home, parts) == kvm.verdict(home, parts)
    assert tried.read_text() == "x\n"
    monkeypatch.setattr(kvm, "boot_id", lambda: "another boot")
    assert kvm.boots(home, parts)
    assert tried.read_text() == "x\nx\n"
    assert kvm.verdict(home, parts, again=True).boots
    assert tried.read_text() == "x\nx\n"  # a good one needs no second try


def test_a_bad_verdict_is_tried_again_where_that_is_asked_for(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.cache.mkdir()
    monkeypatch.setattr(kvm, "DEVICE", tmp_path)
    worked = tmp_path / "worked"
    text = f"test -e {worked} && echo 'Kernel panic - not syncing: VFS' || exit 1"
    parts: Any = Parts(script(tmp_path / "firecracker", text), tmp_path / "vmlinux")
    assert not kvm.boots(home, parts)
    worked.touch()  # the machine was too busy then
    assert not kvm.boots(home, parts)
    assert kvm.verdict(home, parts, again=True).boots
    assert kvm.boots(home, parts)


def test_no_device(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kvm, "DEVICE", tmp_path / "kvm")
    parts: Any = None
    assert kvm.verdict(home, parts).reason == f"there is no {tmp_path}/kvm"


def test_both_virtiofsds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    rust = script(tmp_path / "rust", "echo '--shared-dir <DIR>'")
    c = script(tmp_path / "c", "echo '-o source=PATH' >&2")
    broken = script(tmp_path / "broken", "exit")
    broken.write_bytes(b"\x7fELF of another machine")
    found = Virtiofsd.find([str(tmp_path / "absent"), str(broken), str(rust), str(c)])
    assert found == Virtiofsd(rust, True)
    assert "--shared-dir=/a,b" in found.command(Path("/a,b"), Path("/s"))
    found = Virtiofsd.find([str(c), str(rust)])
    assert found == Virtiofsd(c, False)
    assert r"source=/a\,b" in found.command(Path("/a,b"), Path("/s"))

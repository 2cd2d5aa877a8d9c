"""Sandboxes beside unmodified Firecracker: run, exec, suspend, resume, checkpoint, fork, copies, and what is stored.

Each is measured in turn with a round of raw.py (``unmodified``), as the machine is not the same from one moment to the
next; medians.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench_exec
from report import MEGABYTE, Report
from unmodified import COLD, DIFF, RESTORE, Raw
from workload import IMAGE, MEMORY_MIB, Talk, agent

from perdure.client.node import NodeClient
from perdure.execution.machine.remote import Launcher
from perdure.host.paths import Home
from perdure.model import ExecSpec, Fork
from perdure.testing.proxy import FaultingProxy
from perdure.testing.servers import registry_server

ROUNDS = 5
REMOTE_ROUNDS = 3  # each is an agent of its own: what was fetched once would be here
FORK_ROUNDS = 3
CLIENT_ROUNDS = 9
FORKS = 10
LATENCY_S = 0.02
FILES_MIB = 256
COPY_MIB = 256
COPY_ROUNDS = 3
TAR, TAR_BELOW = "tar | tar on the node", "tar | tar in the kernel that runs the VM"
PHASES = ("stand", "prepare", "keeper", "restore", "guest", "wake")  # of a resume, as ``fcrun inspect`` shows them


def measure(report: Report, home: Home, client: NodeClient, launcher: Launcher, raw: Raw) -> dict[str, Any]:
    """What ``add`` tells, once it is known what raw.py took in all rounds."""
    _client(report)
    _exec(report, client, launcher)
    cold, warm = _runs(raw)
    return {
        "cold": cold,
        "warm": warm,
        "suspends": _suspends(client, launcher, raw),
        "remote": _remote(client, raw),
        "forks": _forks(client, raw),
        "live": _checkpoints(client, raw),
        "filled": _filled(client, raw),
        "copies": _copies(client, launcher, home),
    }


def add(report: Report, measured: dict[str, Any], *, emulated: bool) -> None:
    found, remote, forks = measured["suspends"], measured["remote"], measured["forks"]
    live, filled, copies = measured["live"], measured["filled"], measured["copies"]
    report.add("fcrun run, cold (its template is made)", measured["cold"], "s", over=COLD)
    report.add("fcrun run, warm", measured["warm"], "s", over=RESTORE, goal="ratio <= 1.5")
    report.add("fcrun run, warm, beside raw cold boot", measured["warm"], "s", over=COLD, goal="ratio <= 0.125")
    report.add("suspend: vCPUs stand still", found["pause_s"], "s", over=DIFF, goal="ratio <= 1.2")
    report.add("live checkpoint: vCPUs stand still", live, "s", over=DIFF, goal="ratio <= 1.2")
    goal = "ratio <= 3" if emulated else "value <= 1"
    above = "" if emulated else "ratio >= 0.5"  # an emulated guest is no match for a processor
    report.add("suspend requested to durable, first", found["first"]["took_s"], "s", over=DIFF)
    report.add("suspend requested to durable, later", found["took_s"], "s", over=DIFF, goal=goal)
    report.add("resume requested to first answer", found["answer"], "s", over=RESTORE, goal="ratio <= 1.3")
    for name in PHASES:
        report.add(f"resume, of it: {name}", found[f"{name}_s"], "s")
    full = f"with {FILES_MIB} MiB of files on its disk"
    report.add(f"{full}: resume requested to first answer", filled["answer"], "s", over=RESTORE)
    report.add(f"{full}: suspend requested to durable, later", filled["took_s"], "s", over=DIFF)
    report.add(f"{full}: suspend, vCPUs stand still", filled["pause_s"], "s", over=DIFF)
    behind = f"resume from a registry {LATENCY_S * 1000:g} ms away"
    report.add(behind, remote["answer"], "s", over=RESTORE, goal="ratio <= 2.5")
    report.add(f"{behind}: read at the first answer", remote["bytes"] / MEGABYTE, "MB")
    report.add(f"{behind}: requests until then", remote["requests"], "")
    report.add(f"fork into {FORKS}, all answering, per fork", forks["each_s"], "s", over=RESTORE, goal="ratio <= 3")
    report.add(f"stored by {FORKS} forks that run", forks["stored"] / MEGABYTE, "MB", goal="value <= 0")
    report.add("stored by each fork's first suspend", forks["stored_later"] / MEGABYTE, "MB", goal="value <= 3")
    megabytes = found["first"]["stored_bytes"] / MEGABYTE
    report.add("stored by the first suspend, beyond the template", megabytes, "MB", goal="value <= 8")
    report.add("stored by each later suspend", found["stored_bytes"] / MEGABYTE, "MB", goal="value <= 3")
    report.add(f"stored by {ROUNDS + 1} suspends", found["stored"] / MEGABYTE, "MB")
    report.add(TAR, copies["tar"], "MB/s")
    report.add(TAR_BELOW, copies["below"], "MB/s")
    for way in ("out of", "into"):
        copied = f"fcrun cp of {COPY_MIB} MiB {way} a sandbox"
        report.add(copied, copies[way], "MB/s", over=TAR_BELOW, goal="ratio >= 0.5")
        report.add(f"{copied}, beside the node's own", copies[way], "MB/s", over=TAR, goal=above)
    report.add("keeper of a started sandbox, unique memory", found["unique, started"], "MB", goal="value <= 24")
    resumed = "keeper and pager of a resumed sandbox, unique memory"
    report.add(resumed, found["unique, resumed"], "MB", goal="value <= 24")
    report.add(f"resident of {MEMORY_MIB} MiB after a resume's first answer", found["resident"], "MB")


def _runs(raw: Raw) -> tuple[float, float]:
    """``fcrun run``, cold and warm: from the start of the command to the program's first line on its stdout."""
    cold = _run()
    warm = []
    for _ in range(ROUNDS):
        raw.round()
        warm.append(_run())
    return cold, statistics.median(warm)


def _client(report: Report) -> None:
    """What a command line takes by itself: to start, ask the node one thing, and end. Medians of whole processes.
    Those that a machine would have to answer name what is not there."""
    absent = "is-not-there"
    for status, words in (
        (0, ["ps"]),
        (0, ["images", "-q"]),
        (125, ["exec", absent, "true"]),
        (125, ["logs", absent]),
        (125, ["run", "--rm", "--pull", "never", absent, "true"]),
    ):
        took = []
        for _ in range(CLIENT_ROUNDS):
            began = time.monotonic()
            command = [sys.executable, "-m", "perdure.cli.fcrun", *words]
            done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
            took.append(time.monotonic() - began)
            if done.returncode != status:
                raise RuntimeError(f"fcrun {' '.join(words)} ended with {done.returncode}: {done.stderr!r}")
        what = f"fcrun {words[0]}{' of what is not there' if status else ''}, the whole command"
        report.add(what, statistics.median(took), "s", goal="value <= 0.15")


def _exec(report: Report, client: NodeClient, launcher: Launcher) -> None:
    try:
        found = bench_exec.measure(client, launcher, IMAGE)
    except RuntimeError as error:
        print(f"  exec is not measured: {error}", file=sys.stderr)
        return
    vsock = "vsock round trip of one byte"
    report.add(vsock, found["vsock"], "s")
    report.add("exec of true in a running sandbox", found["exec"], "s", over=vsock, goal="ratio <= 3")
    report.add("exec of true, of it: the guest's own", found["guest"], "s")
    beyond = found["exec"] - found["guest"]
    report.add("exec of true, of it: node and channel", beyond, "s", over=vsock)


def _run() -> float:
    command = [sys.executable, "-m", "perdure.cli.fcrun", "run", "--rm", "-m", f"{MEMORY_MIB}m", IMAGE, "echo", "up"]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took = time.monotonic() - began
    if process.returncode != 0 or line != b"up\n":
        raise RuntimeError(f"fcrun run ended with {process.returncode} after {line!r}")
    return took


def _suspends(client: NodeClient, launcher: Launcher, raw: Raw) -> dict[str, Any]:
    """Suspend and resume, each resume followed by one more turn, beside as many rounds of raw.py."""
    found: dict[str, Any] = {}
    with agent(client) as (ref, talk):
        found["unique, started"] = _unique_memory(client, launcher, ref)
        found["first"] = _suspend(client, ref)
        laters, answers, parts = [], [], []
        for turn in range(ROUNDS):
            raw.round()
            answers.append(_resume(client, ref, talk, f"after {turn}"))
            parts.append(client.get(ref).machine["phases"])
            if turn == 0:
                found["unique, resumed"] = _unique_memory(client, launcher, ref)
                found["resident"] = _memory(launcher, client.get(ref).machine["firecracker_pid"], "Rss")
            laters.append(_suspend(client, ref))
        found["stored"] = client.get(ref).stored_bytes
    for name in PHASES:
        found[f"{name}_s"] = _median(parts, f"{name}_s")
    return found | {"answer": statistics.median(answers)} | {name: _median(laters, name) for name in laters[0]}


def _median(figures: list[dict[str, Any]], name: str) -> float:
    return statistics.median(float(figure[name]) for figure in figures)


def _suspend(client: NodeClient, ref: str) -> dict[str, float]:
    began = time.monotonic()
    info = client.suspend(ref)
    return {"took_s": time.monotonic() - began, "pause_s": info.pause_s, "stored_bytes": info.stored_bytes}


def _resume(client: NodeClient, ref: str, talk: Talk, word: str) -> float:
    """From the request to the answer of the workload, which is asked something as soon as it runs."""
    talk.say(word)
    failed: list[BaseException] = []

    def resume() -> None:
        try:
            client.resume(ref)
        except BaseException as error:
            failed.append(error)

    began = time.monotonic()
    thread = threading.Thread(target=resume)
    thread.start()
    answered = talk.hear()
    thread.join()
    if failed:
        raise failed[0]
    return answered - began


def _unique_memory(client: NodeClient, launcher: Launcher, ref: str) -> float:
    """Private pages of the helper processes of one sandbox (proc_pid_smaps(5)), in MB."""
    machine = client.get(ref).machine
    pids = [pid for pid in (machine.get("keeper_pid"), machine.get("pager_pid")) if pid]
    return sum(_memory(launcher, pid, "Private_Clean", "Private_Dirty") for pid in pids)


def _memory(launcher: Launcher, pid: int, *names: str) -> float:
    """Of one process below the line, in MB, by the names of proc_pid_smaps(5)."""
    said = bytearray()
    asyncio.run(launcher.run(["cat", f"/proc/{pid}/smaps_rollup"], output=said.extend))
    lines = [line.split() for line in said.decode().splitlines() if line.startswith(names)]
    return sum(int(words[1]) for words in lines) * 1024 / MEGABYTE


def _checkpoints(client: NodeClient, raw: Raw) -> float:
    """How long the vCPUs of an agent that goes on stand still, one more turn before each; a median."""
    pauses = []
    with agent(client) as (ref, talk):
        client.checkpoint(ref)  # of all that differs from the template; the others of what a turn changes
        for turn in range(ROUNDS):
            raw.round()
            talk.say(f"after checkpoint {turn}")
            talk.hear()
            pauses.append(client.checkpoint(ref).pause_s)
    return statistics.median(pauses)


def _remote(client: NodeClient, raw: Raw) -> dict[str, float]:
    """Resumes of agents whose memory is in a registry behind latency only; medians."""
    answers, read, requests = [], [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        registry_server(Path(folder)) as upstream,
        FaultingProxy(upstream) as proxy,
    ):
        proxy.latency_s = LATENCY_S
        for number in range(REMOTE_ROUNDS):
            with agent(client) as (ref, talk):
                client.suspend(ref)
                client.store.push(ref, f"oci+http://{proxy.host}/agent-{number}", tag="one")
                client.store.evict(ref)
                raw.round()
                before = len(proxy.asked)
                answers.append(_resume(client, ref, talk, "from afar"))
                asked = [one for one in proxy.asked[before:] if one.method == "GET"]
                requests.append(len(asked))
                read.append(sum(_length(one.range) for one in asked))
    median = statistics.median
    return {"answer": median(answers), "bytes": median(read), "requests": median(requests)}


def _filled(client: NodeClient, raw: Raw) -> dict[str, float]:
    """Suspends and resumes of an agent with much on its disk, of which each turn changes little; medians."""
    laters, answers = [], []
    with agent(client) as (ref, talk):
        filling = f"head -c {FILES_MIB << 20} /dev/urandom > /files"
        if client.run(ref, ExecSpec(command=["sh", "-c", filling]))[0] != 0:
            raise RuntimeError("the disk could not be filled")
        _suspend(client, ref)
        for turn in range(REMOTE_ROUNDS):
            raw.round()
            answers.append(_resume(client, ref, talk, f"with files {turn}"))
            client.run(ref, ExecSpec(command=["sh", "-c", f"echo {turn} >> /notes"]))
            laters.append(_suspend(client, ref))
    return {"answer": statistics.median(answers)} | {name: _median(laters, name) for name in laters[0]}


def _copies(client: NodeClient, launcher: Launcher, home: Home) -> dict[str, float]:
    """MB/s of ``fcrun cp``, measured in turn with what tar does with the same file; medians."""
    rates: dict[str, list[float]] = {"tar": [], "below": [], "out of": [], "into": []}
    fcrun = [sys.executable, "-m", "perdure.cli.fcrun", "cp"]

    def rate(name: str, act: Callable[[], object]) -> None:
        began = time.monotonic()
        act()
        rates[name].append((COPY_MIB << 20) / MEGABYTE / (time.monotonic() - began))

    with agent(client) as (ref, _), tempfile.TemporaryDirectory(dir=home.run) as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        source.mkdir()
        (source / "file").write_bytes(os.urandom(COPY_MIB << 20))
        tar = f"mkdir {target} && tar -C {source} -c . | tar -C {target} -x"
        client.put_archive(ref, "/", _tar_of(source / "file"))
        for _ in range(COPY_ROUNDS):
            for name, run in (
                ("tar", lambda: subprocess.run(tar, shell=True, check=True)),
                ("below", lambda: asyncio.run(launcher.run(["/bin/sh", "-c", tar]))),
            ):
                rate(name, run)
                shutil.rmtree(target)
            rate("out of", lambda: subprocess.run([*fcrun, f"{ref}:/file", str(target)], check=True))
            if target.stat().st_size != COPY_MIB << 20:
                raise RuntimeError("the copy is not whole")
            target.unlink()
            rate("into", lambda: subprocess.run([*fcrun, str(source / "file"), f"{ref}:/file"], check=True))
    return {name: statistics.median(found) for name, found in rates.items()}


def _tar_of(path: Path) -> Iterator[bytes]:
    packed = subprocess.run(["tar", "-C", str(path.parent), "-c", path.name], stdout=subprocess.PIPE, check=True)
    yield packed.stdout


def _length(wanted: str) -> int:
    """Bytes of a Range header; 0: there is none."""
    if not wanted:
        return 0
    first, last = wanted.removeprefix("bytes=").split("-")
    return int(last) - int(first) + 1


def _forks(client: NodeClient, raw: Raw) -> dict[str, float]:
    """Forks of one snapshot, from the request until the last has answered; medians."""
    each, stored, later = [], [], []
    with agent(client) as (ref, _):
        digest = client.suspend(ref).digest
        for _ in range(FORK_ROUNDS):
            raw.round()
            began = time.monotonic()
            forks = [info.id for info in client.fork(digest, [Fork()] * FORKS)]
            with contextlib.ExitStack() as open_sessions:
                talks = [Talk(open_sessions.enter_context(client.attach(fork, logs=False))) for fork in forks]
                for number, talk in enumerate(talks):
                    talk.say(f"I am {number}")
                last = max(talk.hear() for talk in talks)
            each.append((last - began) / FORKS)
            stored.append(sum(client.get(fork).stored_bytes for fork in forks))
            later.append(_suspend(client, forks[0])["stored_bytes"])
            for fork in forks:
                client.remove(fork, force=True)
    median = statistics.median
    return {"each_s": median(each), "stored": median(stored), "stored_later": median(later)}

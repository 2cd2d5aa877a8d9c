"""The demo: one durable agent, suspended, orphaned by its server, killed in mid-answer, and finished all the same.

A live timeline, then a table of measurements and a list of claims, each checked against what really happened: pids
and processes in the kernel that runs the VM, the agent's own account, the context log, and the model provider's own
count of requests. Exits with 1 when a claim fails. Everything that it started is gone at its end, also after Ctrl-C.
"""

# ruff: noqa: E402 - the signals come first
from __future__ import annotations

import signal

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Before anything slow: an import cut short by Ctrl-C is no trace worth reading. Nothing is started yet.
for number in STOPS:
    signal.signal(number, signal.SIG_DFL)

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from perdure.client.node import NodeClient
from perdure.client.server import ServerClient
from perdure.errors import PerdureError, Unavailable
from perdure.execution.machine.remote import Launcher
from perdure.host import below, probes
from perdure.host.paths import Home
from perdure.host.processes import whole
from perdure.model import Entry, RunInfo, RunState
from perdure.runs.states import TERMINAL
from perdure.testing import belowline

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
AGENT = "examples/counter.py:counter"
ENDS = frozenset(f"run.{state}" for state in TERMINAL)
STEP_LIMIT_S = 180.0  # of any one step; under emulation the whole takes about a minute

BOLD, DIM, GREEN, RED, PLAIN = (
    ("\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m") if sys.stdout.isatty() else ("",) * 5
)


class DemoFailed(Exception):
    """A step did not happen in time; the message says which."""


class NotAlone(DemoFailed):
    """Somebody's runs or sandboxes are in this home: the demo would count them, and kill them."""


class Timeline:
    """Prints lines with the time since the start, and keeps measurements and claims for the tables at the end."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.figures: list[tuple[str, str]] = []
        self.claims: list[tuple[str, bool, str]] = []

    def say(self, who: str, text: str) -> None:
        print(f"{DIM}{time.monotonic() - self.began:6.1f} s{PLAIN}  {BOLD}{who:<10}{PLAIN} {text}", flush=True)

    def figure(self, name: str, value: str) -> None:
        self.figures.append((name, value))

    def claim(self, text: str, holds: bool, evidence: str) -> None:
        self.claims.append((text, holds, evidence))
        mark = f"{GREEN}yes{PLAIN}" if holds else f"{RED}NO{PLAIN}"
        self.say("claim", f"{text}: {mark} {DIM}({evidence}){PLAIN}")

    def tables(self) -> bool:
        """Print both tables; whether every claim holds."""
        width = max(len(name) for name, _ in self.figures)
        print(f"\n{BOLD}Measured{PLAIN}")
        for name, value in self.figures:
            print(f"  {name:<{width}}  {value}")
        print(f"\n{BOLD}Claims{PLAIN}")
        for text, holds, evidence in self.claims:
            print(f"  {GREEN + 'holds ' if holds else RED + 'FAILED'}{PLAIN} {text} {DIM}({evidence}){PLAIN}")
        return all(holds for _, holds, _ in self.claims)


def command(*words: str) -> str:
    """Run one of the project's own commands, as a user would; its standard output."""
    process: subprocess.Popen[str] | None = None
    try:
        with whole(STOPS):
            process = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
        output, errors = process.communicate()
    except KeyboardInterrupt:  # it did not get the Ctrl-C: what it begins is whole before it is removed
        for number in STOPS:  # a second Ctrl-C must not leave half of it
            signal.signal(number, signal.SIG_IGN)
        if process is not None:
            print(f"\ninterrupted; waiting for: {' '.join(words)}", file=sys.stderr, flush=True)
            process.communicate()
        raise
    if process.returncode != 0:
        raise DemoFailed(f"{' '.join(words)} exited with {process.returncode}:\n{errors.strip()}")
    return output


class Watch:
    """Follows the run's entries, prints those that tell the story, and lets the demo wait for one."""

    def __init__(self, home: Home, run_id: str, timeline: Timeline) -> None:
        self.home, self.run_id, self.timeline = home, run_id, timeline
        self.entries: list[Entry] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def wait_for(self, what: str, found: Callable[[Entry], bool], after: int = 0) -> Entry:
        """The first entry beyond position ``after`` for which ``found`` holds. Raises DemoFailed after the limit."""
        deadline = time.monotonic() + STEP_LIMIT_S
        with self._changed:
            while True:
                for entry in self.entries:
                    if entry.seq > after and found(entry):
                        return entry
                    if entry.kind in ENDS:
                        raise DemoFailed(f"the run ended before {what}: {json.dumps(entry.payload)}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise DemoFailed(f"{what} did not happen within {STEP_LIMIT_S:.0f} s")
                self._changed.wait(min(left, 1.0))

    def kinds(self, kind: str) -> list[Entry]:
        with self._changed:
            return [entry for entry in self.entries if entry.kind == kind]

    def _follow(self) -> None:
        after = 0
        while True:
            try:  # the server is killed on purpose: follow again from where we were
                for entry in self._read(after):
                    after = entry.seq
                    self.timeline_line(entry)
                    with self._changed:
                        self.entries.append(entry)
                        self._changed.notify_all()
                    if entry.kind in ENDS:
                        return
            except Exception:
                time.sleep(0.1)

    def _read(self, after: int) -> Iterator[Entry]:
        return ServerClient(self.home).entries(self.run_id, after=after, follow=True)

    def timeline_line(self, entry: Entry) -> None:
        payload = entry.payload if isinstance(entry.payload, dict) else {}
        match entry.kind:
            case "emit":
                self.timeline.say("agent", f"{payload.get('name')}: {json.dumps(payload.get('value'))}")
            case "model.committed":
                usage = payload.get("usage") or {}
                self.timeline.say(
                    "model", f"{payload.get('text', '')!r:.60} ({usage.get('output_tokens', '?')} tokens)"
                )
            case "snapshot" | "wait.started" | "wait.completed" | "model.intent" | "model.replayed" | "step.result":
                self.timeline.say("log", f"{entry.seq}: {entry.kind}")
            case kind if kind.startswith("run."):
                cause = payload.get("cause") or payload.get("reason") or ""
                self.timeline.say("run", kind.removeprefix("run.") + (f" ({cause})" if cause else ""))


def below_the_line(home: Home, *argv: str) -> tuple[int, str]:
    """Run a program in the kernel that runs the VMs: its exit status and output."""
    output: list[bytes] = []

    async def ask() -> int:
        address = below.status(home).address
        if address is None:
            raise DemoFailed("no launcher runs")
        return await (await Launcher.connect(address)).run(argv, output=output.append, timeout_s=60)

    status = asyncio.run(ask())
    return status, b"".join(output).decode(errors="replace")


def firecrackers(home: Home) -> list[int]:
    """The pids of all Firecracker processes in that kernel that run a machine of this home."""
    return belowline.machines(home, below_the_line(home, *belowline.LOOK)[1])


def size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def wait_state(client: Callable[[], RunInfo], state: RunState) -> RunInfo:
    """The run once it is in a state. Follows by asking: the server may be away meanwhile."""
    deadline = time.monotonic() + STEP_LIMIT_S
    while time.monotonic() < deadline:
        info = client()
        if info.state == state:
            return info
        if info.state in (RunState.FAILED, RunState.CANCELLED):
            raise DemoFailed(f"the run is {info.state}: {info.error}")
        time.sleep(0.05)
    raise DemoFailed(f"the run was not {state} within {STEP_LIMIT_S:.0f} s")


def wait_output(server: ServerClient, run_id: str) -> str:
    """What the agent has printed of its second turn, once that is anything: the stream has begun."""
    deadline = time.monotonic() + STEP_LIMIT_S
    while time.monotonic() < deadline:
        if told := server.output(run_id).decode(errors="replace"):
            return told
        time.sleep(0.02)
    raise DemoFailed(f"the agent printed nothing within {STEP_LIMIT_S:.0f} s")


def provider_requests(server: ServerClient) -> int:
    """How many requests the model provider itself counted."""
    return len(server.provider_requests())


def pid_is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def story(home: Home, line: Timeline) -> None:
    """The whole demo, step by step."""
    line.say("machine", "what this machine offers:")
    for finding in probes.examine(home):
        print(f"{'':12}{finding.level:<8} {finding.name:<14} {finding.found}")

    line.say("$", "perdure up")
    began = time.monotonic()
    command("perdure", "up")
    line.figure("server and node up", f"{time.monotonic() - began:.1f} s")
    server = ServerClient(home)
    refuse_strangers(home, server)

    line.say("$", f"perdure run {AGENT} --detach")
    before = provider_requests(server)
    began = time.monotonic()
    run_id = command("perdure", "run", AGENT, "--input", '{"topic": "owls"}', "--detach").strip()
    watch = Watch(home, run_id, line)
    first = watch.wait_for("the first turn", lambda e: e.kind == "model.committed")
    line.figure("run requested to first turn answered", f"{time.monotonic() - began:.1f} s")
    early = watch.wait_for("the agent's state before the wait", lambda e: e.kind == "emit").payload["value"]
    wait = watch.wait_for("the approval wait", lambda e: e.kind == "wait.started", first.seq)

    suspended = watch.wait_for("the suspend", lambda e: e.kind == "run.suspended", wait.seq)
    info = wait_state(lambda: server.get(run_id), RunState.SUSPENDED)
    snapshot = info.snapshot
    if snapshot is None:
        raise DemoFailed("the run is suspended without a snapshot")
    stored = snapshot.memory_bytes + snapshot.disk_bytes + snapshot.state_bytes
    line.figure(
        "suspend requested to durable", f"{snapshot.total_s:.2f} s (vCPUs stood still for {snapshot.pause_s:.2f} s)"
    )
    line.figure("stored by the suspend, of a 512 MiB VM", size(stored))
    running = firecrackers(home)
    line.claim("suspended: no Firecracker process is left", not running, f"{len(running)} found")
    line.claim("what is stored is at most 14 MB", stored <= 14_000_000, size(stored))

    pid = int(server.status()["pid"])
    line.say("kill -9", f"the server (pid {pid})")
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not pid_is_gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    line.say("$", "perdure up")
    began = time.monotonic()
    command("perdure", "up")
    line.figure("server started again", f"{time.monotonic() - began:.2f} s")
    line.claim(
        "another server serves the same log", int(server.status()["pid"]) != pid, f"pid {server.status()['pid']}"
    )

    line.say("$", f"perdure approve {run_id}")
    began = time.monotonic()
    command("perdure", "approve", run_id, "--comment", "go on")
    late_entry = watch.wait_for("the agent going on", lambda e: e.kind == "emit", suspended.seq)
    line.figure("approved to the agent going on", f"{time.monotonic() - began:.2f} s")
    machine = NodeClient(home).get(info.sandbox_id).machine
    victim = machine["firecracker_pid"]  # known before the turn: looking for it takes as long as the turn may
    line.figure("of it, until the restored VM's workload ran", f"{float(machine['phases']['total_s']):.2f} s")
    late = late_entry.payload["value"]
    same = all(early[name] == late[name] for name in ("pid", "started", "file"))
    line.claim("the same process goes on, same memory, same file", same and late["counter"] == early["counter"] + 1,
               f"pid {early['pid']} = {late['pid']}, counter {early['counter']} -> {late['counter']}")  # fmt: skip

    asked = watch.wait_for("the second turn", lambda e: e.kind == "model.started", late_entry.seq)
    told = wait_output(server, run_id)
    line.say("agent", f"{told!r:.60} …")
    line.say("kill -9", f"the VM (Firecracker {victim}) while the second turn streams")
    began = time.monotonic()
    below_the_line(home, "kill", "-9", str(victim))
    recovered = watch.wait_for("the recovery", lambda e: e.kind == "run.recovering", asked.seq)
    again = watch.wait_for("running again", lambda e: e.kind == "run.running", recovered.seq)
    line.figure("VM killed to running again", f"{time.monotonic() - began:.2f} s")
    watch.wait_for("the end", lambda e: e.kind == "run.completed", again.seq)
    line.figure("VM killed to the run's end", f"{time.monotonic() - began:.2f} s")

    info = wait_state(lambda: server.get(run_id), RunState.COMPLETED)
    result: Any = info.result
    requests = provider_requests(server) - before
    turns = len({entry.key for entry in watch.kinds("model.committed")})
    line.figure("turns the agent needed", str(turns))
    line.figure("turns asked of the provider, by its own count", str(requests))
    line.figure("turns answered from the log", str(info.turns_replayed))
    line.claim("it recovered from the snapshot", info.recoveries == 1, f"{info.recoveries} recovery")
    line.claim("no answered turn was asked again", requests == turns == 2, f"{turns} turns, {requests} requests")
    line.claim(
        "its answer came from the log, or from the call in flight",
        info.turns_replayed >= 1,
        f"{info.turns_replayed} replayed",
    )
    same = all(result[name] == early[name] for name in ("pid", "started", "file"))
    line.claim("it finished, same process still", same, f"pid {result['pid']}, counter {result['counter']}")
    checked = server.verify(run_id)
    line.claim("the log's hash chain verifies", checked["entries"] > 0, f"{checked['entries']} entries")
    print()
    print(command("perdure", "show", run_id))


def cancel_runs(home: Home, since: float) -> None:
    """Runs are durable: one that is left unfinished would go on with the next server."""
    server = ServerClient(home)
    with contextlib.suppress(PerdureError, DemoFailed):
        if (home.root / "perdure.db").exists():
            subprocess.run([str(BIN / "perdure"), "up"], cwd=ROOT, capture_output=True, start_new_session=True)
        ours = {info.id for info in server.runs() if info.created >= since}
        for info in server.runs():
            if info.id in ours and info.state not in TERMINAL:
                server.cancel(info.id, reason="the demo was ended")
        node, deadline = NodeClient(home), time.monotonic() + 60
        while any(info.spec.labels.get("perdure.run") in ours for info in node.list()) and time.monotonic() < deadline:
            time.sleep(0.1)  # their sandboxes are removed after them


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def refuse_others(home: Home) -> None:
    """The demo ends what it started: where something else runs already, that would be somebody's."""
    with contextlib.suppress(Unavailable):
        pid = ServerClient(home).status()["pid"]
        down = f"PERDURE_HOME={home.root} {BIN / 'perdure'} down"
        raise DemoFailed(f"a server (pid {pid}) already serves {home.root}; end it with: {down}")
    with contextlib.suppress(Unavailable):
        if sandboxes := [info.name for info in NodeClient(home).list(everything=False)]:
            raise DemoFailed(f"sandboxes live in {home.root}: {', '.join(sandboxes)}; end them, or set PERDURE_HOME")


def refuse_strangers(home: Home, server: ServerClient) -> None:
    """What came to life with the server and the node: runs that an earlier one left unfinished, machines that live."""
    runs = [info.id for info in server.runs() if info.state not in TERMINAL]
    sandboxes = [info.name for info in NodeClient(home).list(everything=False)]
    if runs:
        raise NotAlone(
            f"unfinished runs are in {home.root}: {', '.join(runs)}; with PERDURE_HOME={home.root}, "
            f"'{BIN / 'perdure'} up' and then 'cancel RUN' end them, or set PERDURE_HOME to another folder"
        )
    if sandboxes:
        raise NotAlone(f"sandboxes live in {home.root}: {', '.join(sandboxes)}; end them, or set PERDURE_HOME")


def main() -> int:
    # its claims are about the offline model's own count; nobody's key is spent
    os.environ.update({"PERDURE_PROVIDER": "offline"})
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        del os.environ[name]
    home = Home.find().make()
    line = Timeline()
    try:
        refuse_others(home)
    except DemoFailed as error:
        print(f"{RED}the demo does not begin:{PLAIN} {error}", file=sys.stderr)
        return 1
    since, ok, alone = time.time(), False, True
    for number in STOPS:
        signal.signal(number, interrupt)
    try:
        story(home, line)
        ok = line.tables()
    except NotAlone as error:
        alone = False
        print(f"{RED}the demo does not go on:{PLAIN} {error}", file=sys.stderr)
    except DemoFailed as error:
        print(f"{RED}the demo failed:{PLAIN} {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted; removing what was started", file=sys.stderr)
    finally:
        for number in STOPS:  # a second Ctrl-C must not leave half of it
            signal.signal(number, signal.SIG_IGN)
        if not ok and alone:
            cancel_runs(home, since)
        for words in (("perdure", "down"), ("fcrun", "host", "stop"))[: 2 if alone else 1]:
            subprocess.run([str(BIN / words[0]), *words[1:]], cwd=ROOT, capture_output=True, start_new_session=True)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())

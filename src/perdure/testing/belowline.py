"""What runs in the kernel that runs the VMs, seen from outside of everything that is tested."""

from __future__ import annotations

from typing import NamedTuple

from perdure.host.paths import Home

# Two programs: forks are slow there. Who ends meanwhile is not told.
LOOK = ("sh", "-c", "ls -l /proc/[0-9]*/cwd 2>/dev/null; cat /proc/[0-9]*/stat 2>/dev/null; true")

# Kills the first part of a machine of a home that is born: words are its folder of machines, the name of the part's
# program ("": a keeper), and the pids that are not meant. Nothing is forked: what is met lasts for seconds at most.
KILL_NEXT = ("sh", "-c", """
mine=$1 name=$2 known=" $3 " left=$4
while [ $left -gt 0 ]; do
    left=$((left - 1))
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        case $known in *" $pid "*) continue;; esac
        { read -r line < $process/stat; } 2>/dev/null || continue
        rest=${line##*) } program=${line#*(} keeper=$pid
        program=${program%)*}
        if [ "$name" ]; then
            [ "$program" = "$name" ] || continue
            rest=${rest#* } keeper=${rest%% *}
        fi
        cd -P /proc/$keeper/cwd 2>/dev/null || continue
        case $PWD in "$mine"/*) kill -9 $pid && exit 0;; esac
    done
done
exit 1
""", "kill-next")  # fmt: skip

# Kills the first of those that are wished and there, and prints it: words are this home's folder of machines, then each
# wish as PROGRAM/SANDBOX ("keeper" for a keeper). Nothing is forked here either: who looks, and then kills, is late.
# One that was seen may be gone by then: the next one is tried, without a word, as both outputs come as one.
KILL_WISHED = ("sh", "-c", """
mine=$1 found=
shift
for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    { read -r line < $process/stat; } 2>/dev/null || continue
    rest=${line##*) } program=${line#*(} keeper=$pid
    program=${program%)*}
    case $rest in Z*) continue;; esac
    case $program in
        firecracker|pager) rest=${rest#* } keeper=${rest%% *};;
        *) program=keeper;;
    esac
    cd -P /proc/$keeper/cwd 2>/dev/null || continue
    case $PWD in "$mine"/*) sandbox=${PWD#"$mine"/}; found="$found $program/${sandbox%%/*}=$pid";; esac
done
for wish in "$@"; do
    case $found in *" $wish="*)
        pid=${found##* "$wish"=}
        kill -9 ${pid%% *} 2>/dev/null && echo "$wish" && exit 0;;
    esac
done
exit 1
""", "kill-wished")  # fmt: skip


def machines(home: Home, said: str) -> list[int]:
    """The pids of the Firecrackers of this home's machines, from what ``LOOK`` printed below the line.

    A jail shows nothing of whose it is, but what is in it is a child of its keeper, whose folder is the machine's.
    Those that were started ahead are not among them: they have no machine, and are nobody's.
    """
    return parts(home, said)["VM"]


def parts(home: Home, said: str) -> dict[str, list[int]]:
    """The pids of all parts of this home's machines: "keeper", "VM", "pager"."""
    found: dict[str, list[int]] = {"keeper": [], "VM": [], "pager": []}
    for one in members(home, said):
        found[one.part].append(one.pid)
    return {part: sorted(pids) for part, pids in found.items()}


class Member(NamedTuple):
    part: str
    pid: int
    sandbox: str  # the id of the one whose machine it is of


def members(home: Home, said: str) -> list[Member]:
    """All parts of this home's machines, each with whose it is."""
    mine = f"{home.below_line_folder}/m/"
    keepers: dict[int, str] = {}
    programs: list[tuple[int, str, int]] = []  # pid, name, parent
    for line in said.splitlines():
        if "/proc/" in line and " -> " in line:
            name, _, target = line.split("/proc/", 1)[1].partition(" -> ")
            if target.startswith(mine):
                keepers[int(name.removesuffix("/cwd"))] = target.removeprefix(mine).split("/")[0]
        elif ")" in line:
            head, _, tail = line.rpartition(")")
            pid, _, program = head.partition(" (")
            programs.append((int(pid), program, int(tail.split()[1])))
    named = {"firecracker": "VM", "pager": "pager"}
    children = [(named[name], pid, keepers[of]) for pid, name, of in programs if name in named and of in keepers]
    return [Member(*one) for one in [*(("keeper", pid, box) for pid, box in keepers.items()), *children]]

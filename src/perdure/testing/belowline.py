"""What runs in the kernel that runs the VMs, seen from outside of everything that is tested."""

from __future__ import annotations

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


def machines(home: Home, said: str) -> list[int]:
    """The pids of the Firecrackers of this home's machines, from what ``LOOK`` printed below the line.

    A jail shows nothing of whose it is, but what is in it is a child of its keeper, whose folder is the machine's.
    Those that were started ahead are not among them: they have no machine, and are nobody's.
    """
    return parts(home, said)["VM"]


def parts(home: Home, said: str) -> dict[str, list[int]]:
    """The pids of all parts of this home's machines: "keeper", "VM", "pager"."""
    mine = str(home.below_line_folder / "m")
    keepers: set[int] = set()
    programs: list[tuple[int, str, int]] = []  # pid, name, parent
    for line in said.splitlines():
        if "/proc/" in line and " -> " in line:
            name, _, target = line.split("/proc/", 1)[1].partition(" -> ")
            if target.startswith(mine):
                keepers.add(int(name.removesuffix("/cwd")))
        elif ")" in line:
            head, _, tail = line.rpartition(")")
            pid, _, program = head.partition(" (")
            programs.append((int(pid), program, int(tail.split()[1])))
    children = {
        part: [pid for pid, program, parent in programs if program == name and parent in keepers]
        for part, name in (("VM", "firecracker"), ("pager", "pager"))
    }
    return {"keeper": sorted(keepers), **children}

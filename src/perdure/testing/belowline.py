"""What runs in the kernel that runs the VMs, seen from outside of everything that is tested."""

from __future__ import annotations

from perdure.host.paths import Home

LOOK = ("sh", "-c", "ls -l /proc/[0-9]*/exe /proc/[0-9]*/cwd")  # one program: forks are slow there


def machines(home: Home, said: str) -> list[int]:
    """The pids of the Firecrackers of this home's machines, from what ``LOOK`` printed below the line.

    Those that were started ahead are not among them: they have no machine, and are nobody's.
    """
    links = dict(line.split("/proc/", 1)[1].split(" -> ", 1) for line in said.splitlines() if " -> " in line)
    mine = str(home.below_line_folder / "m")
    return [
        int(name.removesuffix("/exe"))
        for name, target in links.items()
        if name.endswith("/exe")
        and target.endswith("/firecracker")
        and links.get(name.replace("/exe", "/cwd"), "").startswith(mine)
    ]

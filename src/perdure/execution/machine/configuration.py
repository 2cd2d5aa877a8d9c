"""How our machines are configured: values, and the Firecracker requests made from them. Light: keepers import it."""

from __future__ import annotations

from perdure.errors import InvalidValue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# init_on_free: freed pages become zeros, so they cost nothing in a snapshot. panic=1, reboot=k: a guest that panics
# or reboots ends Firecracker. One serial port, quiet: each byte of console is an exit of the VM.
BOOT_ARGS = "console=ttyS0 reboot=k panic=1 quiet 8250.nr_uarts=1 init_on_free=1"
GUEST_CID = 3
GUEST_PORT = 4751  # guestd dials CID 2 (the host) at this port; Firecracker forwards it to VSOCK_PATH + "_4751"
VSOCK_PATH = "vsock.sock"  # relative, like the drives: a snapshot records the path, and restores in any folder
API_PATH = "api.sock"
KERNEL_PATH, INITRD_PATH, STATE_PATH, MEMORY_PATH = "kernel", "initrd", "state", "memory"
SHARED_DRIVES = frozenset({"image"})  # which many machines read, and none writes to
PAGER_PATH = "pager.sock"
NIC = "eth0"
TAP = "tap0"  # of every machine, in a network namespace of its own (keeper.network)
GUEST_MAC = "02:fc:00:00:00:02"  # eth0's, and its address and its way out: the same in every guest (guest/network.c)
GUEST_ADDRESS, HOST_ADDRESS = "172.31.255.2", "172.31.255.1"
PLACEHOLDER_BYTES = 4096  # the size of a template's drives
SHARED = "shared"  # what the ids of volumes begin with that are only read
WRITABLE, READ_ONLY = "w", "r"  # one for each drive of a machine beyond image and overlay, in a string


def text(params: dict[str, Any], name: str) -> str:
    """A parameter that must be a non-empty string. Raises InvalidValue."""
    value = params.get(name)
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidValue(f"the parameter {name!r} must be a non-empty string, it is {value!r}")
    return value


def whole(params: dict[str, Any], name: str, least: int, most: int) -> int:
    """A parameter that must be an integer within bounds. Raises InvalidValue."""
    value = params.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidValue(f"the parameter {name!r} must be a whole number from {least} to {most}, it is {value!r}")
    return value


def interface(params: dict[str, Any], name: str) -> str:
    """A parameter that must be the name of a network interface. Raises InvalidValue."""
    value = text(params, name)
    if len(value) > 15 or not value.isascii() or not value.replace("-", "").isalnum():
        raise InvalidValue(f"the parameter {name!r} must be the name of an interface, it is {value!r}")
    return value


def address(params: dict[str, Any], name: str) -> str:
    """A parameter that must be an IPv4 address, as four numbers. Raises InvalidValue."""
    value = text(params, name)
    parts = value.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and int(part) <= 255 for part in parts):
        raise InvalidValue(f"the parameter {name!r} must be an IPv4 address, it is {value!r}")
    return value


def cidr(value: object) -> tuple[str, int]:
    """``ADDRESS/PREFIX`` as both. Raises InvalidValue."""
    head, _, tail = value.partition("/") if isinstance(value, str) else ("", "", "")
    if not tail.isdigit() or int(tail) > 32:
        raise InvalidValue(f"a network must be ADDRESS/PREFIX, it is {value!r}")
    return address({"network": head}, "network"), int(tail)


def listed(params: dict[str, Any], name: str) -> list[Any]:
    """A parameter that must be a list, or is left out. Raises InvalidValue."""
    value = params.get(name) or []
    if not isinstance(value, list):
        raise InvalidValue(f"the parameter {name!r} must be a list")
    return value


def texts(params: dict[str, Any], name: str) -> list[str]:
    """A parameter that must be a list of strings, or is left out. Raises InvalidValue."""
    value = listed(params, name)
    if not all(isinstance(one, str) for one in value):
        raise InvalidValue(f"the parameter {name!r} must be a list of strings")
    return value


def drive_id(value: object) -> str:
    """The name of a drive, which is also the name of its file in Firecracker's folder. Raises InvalidValue."""
    if not isinstance(value, str) or not value.isascii() or not value.isalnum() or len(value) > 32:
        raise InvalidValue(f"a drive's id must be 1 to 32 letters and digits, it is {value!r}")
    return value


def volume_drives(volumes: str) -> list[str]:
    """The ids of the drives beyond image and overlay; ``volumes``: one letter for each."""
    return [f"{SHARED if access == READ_ONLY else 'volume'}{number}" for number, access in enumerate(volumes)]


def is_shared(drive: str) -> bool:
    """Whether its file is only read, perhaps by several machines."""
    return drive in SHARED_DRIVES or drive.startswith(SHARED)


def boot_requests(params: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """The API requests (method, path, body) that configure and start a machine from the parameters of ``boot``.

    All paths in them are names in Firecracker's folder; those of the drives are their ids. Raises InvalidValue.
    """
    requests: list[tuple[str, str, dict[str, Any]]] = [
        (
            "PUT",
            "/boot-source",
            {
                "kernel_image_path": KERNEL_PATH,
                "initrd_path": INITRD_PATH,
                "boot_args": text(params, "boot_args"),
            },
        ),
        (
            "PUT",
            "/machine-config",
            {
                "vcpu_count": whole(params, "vcpus", 1, 32),
                "mem_size_mib": whole(params, "memory_mib", 64, 1 << 20),
                "track_dirty_pages": True,
            },
        ),
    ]
    for drive in params.get("drives") or []:
        name = drive_id(drive.get("id"))
        body = {
            "drive_id": name,
            "path_on_host": name,
            "is_root_device": False,
            "is_read_only": bool(drive.get("read_only")),
        }
        requests.append(("PUT", f"/drives/{name}", body))
    if params.get("nic"):
        body = {"iface_id": NIC, "host_dev_name": TAP, "guest_mac": GUEST_MAC}
        requests.append(("PUT", f"/network-interfaces/{NIC}", body))
    requests.append(("PUT", "/vsock", {"guest_cid": GUEST_CID, "uds_path": VSOCK_PATH}))
    requests.append(("PUT", "/actions", {"action_type": "InstanceStart"}))
    return requests


def network(params: dict[str, Any]) -> dict[str, Any]:
    """The parameter ``network``. Raises InvalidValue."""
    value = params.get("network")
    if not isinstance(value, dict):
        raise InvalidValue("the parameter 'network' must be an object")
    return value


def network_limits(params: dict[str, Any]) -> list[dict[str, Any]]:
    """What Firecracker is to limit its guest's network to; nothing, where no limit was asked for. Raises InvalidValue.

    A bucket of one second's worth, refilled as it empties: a burst of that size is let through.
    """
    wanted = network(params) if "network" in params else {}
    limits = {}
    for name, parameter, most in (("bandwidth", "bytes_per_s", 1 << 50), ("ops", "packets_per_s", 1 << 40)):
        if wanted.get(parameter):
            size = whole(wanted, parameter, 1, most)
            limits[name] = {"size": size, "refill_time": 1000}
    return [limits] if limits else []


def disk_limits(params: dict[str, Any]) -> dict[str, Any]:
    """What Firecracker is to limit each of its drives to, a bucket each as above; 0 takes a limit away. Nothing: every
    drive keeps what its snapshot has. Raises InvalidValue."""
    wanted = params.get("disk")
    if wanted is None:
        return {}
    if not isinstance(wanted, dict):
        raise InvalidValue("the parameter 'disk' must be an object")
    sizes = {
        "bandwidth": whole(wanted, "bytes_per_s", 0, 1 << 50),
        "ops": whole(wanted, "ops_per_s", 0, 1 << 40),
    }
    return {name: {"size": size, "refill_time": 1000 if size else 0} for name, size in sizes.items()}


def drive_paths(params: dict[str, Any]) -> dict[str, str]:
    """The drives of ``boot`` (a list) or ``restore`` (a mapping) as id -> path. Raises InvalidValue."""
    drives = params.get("drives") or {}
    if isinstance(drives, list):
        return {drive_id(drive.get("id")): text(drive, "path") for drive in drives if isinstance(drive, dict)}
    if not isinstance(drives, dict):
        raise InvalidValue("the parameter 'drives' must be an object or a list of objects")
    return {drive_id(name): text(drives, name) for name in drives}

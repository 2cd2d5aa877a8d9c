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
PAGER_PATH = "pager.sock"
PLACEHOLDER_BYTES = 4096  # the size of a template's drives


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


def drive_id(value: object) -> str:
    """The name of a drive, which is also the name of its symlink in the machine folder. Raises InvalidValue."""
    if not isinstance(value, str) or not value.isascii() or not value.isalnum() or len(value) > 32:
        raise InvalidValue(f"a drive's id must be 1 to 32 letters and digits, it is {value!r}")
    return value


def boot_requests(params: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """The API requests (method, path, body) that configure and start a machine from the parameters of ``boot``.

    The drives' paths in them are their ids: symlinks in the machine folder. Raises InvalidValue.
    """
    requests: list[tuple[str, str, dict[str, Any]]] = [
        (
            "PUT",
            "/boot-source",
            {
                "kernel_image_path": text(params, "kernel"),
                "initrd_path": text(params, "initrd"),
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
    requests.append(("PUT", "/vsock", {"guest_cid": GUEST_CID, "uds_path": VSOCK_PATH}))
    requests.append(("PUT", "/actions", {"action_type": "InstanceStart"}))
    return requests


def drive_paths(params: dict[str, Any]) -> dict[str, str]:
    """The drives of ``boot`` (a list) or ``restore`` (a mapping) as id -> path. Raises InvalidValue."""
    drives = params.get("drives") or {}
    if isinstance(drives, list):
        return {drive_id(drive.get("id")): text(drive, "path") for drive in drives if isinstance(drive, dict)}
    if not isinstance(drives, dict):
        raise InvalidValue("the parameter 'drives' must be an object or a list of objects")
    return {drive_id(name): text(drives, name) for name in drives}

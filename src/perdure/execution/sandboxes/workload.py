"""What runs in a sandbox: the spec's wishes joined with what the image's author configured, as Docker joins them."""

from __future__ import annotations

from perdure.errors import InvalidValue
from perdure.execution.images.image import ImageConfig
from perdure.model import GUEST_HTTP_PORT, ExecSpec, SandboxSpec

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GUEST_URL = f"http://127.0.0.1:{GUEST_HTTP_PORT}"


def command(spec: SandboxSpec, image: ImageConfig) -> list[str]:
    """The main process's argv. An entrypoint of the spec drops the image's CMD. Raises InvalidValue for none."""
    if spec.entrypoint is not None:
        argv = [*spec.entrypoint, *spec.command]
    else:
        argv = [*image.entrypoint, *(spec.command or image.cmd)]
    if not argv:
        raise InvalidValue(
            f"no command given, and image {spec.image} has none",
            hint=f"Name one: fcrun run {spec.image} COMMAND",
        )
    return argv


def environment(spec: SandboxSpec, image: ImageConfig, hostname: str, *, tty: bool) -> dict[str, str]:
    """The environment of every process of a sandbox: defaults, the image's, the doors to the host, the user's."""
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if tty:
        env["TERM"] = "xterm"
    env |= image.env
    env["PERDURE_URL"] = GUEST_URL
    if spec.calls is not None:
        env |= {"OPENAI_BASE_URL": f"{GUEST_URL}/v1", "OPENAI_API_KEY": "placeholder"}  # the real key stays on the host
    return env | spec.env


def main_process(spec: SandboxSpec, image: ImageConfig, hostname: str) -> ExecSpec:
    return ExecSpec(
        command=command(spec, image),
        env=environment(spec, image, hostname, tty=spec.tty),
        cwd=spec.cwd or image.cwd or "/",
        user=spec.user or image.user,
        tty=spec.tty,
        stdin=spec.stdin,
    )


def side_process(wish: ExecSpec, spec: SandboxSpec, image: ImageConfig, hostname: str) -> ExecSpec:
    """An exec: it inherits user, folder and environment, and overrides them."""
    if not wish.command:
        raise InvalidValue("no command given", hint="fcrun exec SANDBOX COMMAND")
    return ExecSpec(
        command=wish.command,
        env=environment(spec, image, hostname, tty=wish.tty) | wish.env,
        cwd=wish.cwd or spec.cwd or image.cwd or "/",
        user=wish.user or spec.user or image.user,
        tty=wish.tty,
        stdin=wish.stdin,
        rows=wish.rows,
        columns=wish.columns,
    )

"""What runs in a sandbox: the spec's wishes joined with what the image's author configured, as Docker joins them."""

from __future__ import annotations

from perdure.errors import InvalidValue
from perdure.execution.images.image import ImageConfig
from perdure.model import GUEST_HTTP_PORT, ExecSpec, HealthCheck, SandboxSpec

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HEALTH_INTERVAL_S = HEALTH_TIMEOUT_S = 30.0
HEALTH_RETRIES = 3
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
        env |= {"OPENAI_BASE_URL": f"{GUEST_URL}/v1", "ANTHROPIC_BASE_URL": GUEST_URL}
        env |= dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY"), "placeholder")  # the real keys stay on the host
        env["PERDURE_DOOR"] = GUEST_URL.removeprefix("http://")  # guestd then puts perdure-guest behind its PATH
    return env | spec.env


def health_check(spec: SandboxSpec, image: ImageConfig) -> HealthCheck | None:
    """How its health is looked after; None: not at all. What the spec leaves open is the image's, then docker's.

    Raises InvalidValue for a test of an unknown form.
    """
    given, author = spec.health or HealthCheck(), image.health or HealthCheck()
    test = given.test or author.test
    if not test or test == ["NONE"]:
        return None
    if test[0] not in ("CMD", "CMD-SHELL") or len(test) < 2:
        raise InvalidValue(f"the health check {test} is of no known form", hint="Use CMD, CMD-SHELL or NONE.")
    if min(given.interval_s, given.timeout_s, given.retries, given.start_period_s, given.start_interval_s) < 0:
        raise InvalidValue("the times and retries of a health check cannot be negative")
    interval_s = given.interval_s or author.interval_s or HEALTH_INTERVAL_S
    return HealthCheck(
        test=["/bin/sh", "-c", test[1]] if test[0] == "CMD-SHELL" else test[1:],
        interval_s=interval_s,
        timeout_s=given.timeout_s or author.timeout_s or HEALTH_TIMEOUT_S,
        retries=given.retries or author.retries or HEALTH_RETRIES,
        start_period_s=given.start_period_s or author.start_period_s,
        start_interval_s=given.start_interval_s or author.start_interval_s or interval_s,
    )


def stop_signal(spec: SandboxSpec, image: ImageConfig) -> str:
    return spec.stop_signal or image.stop_signal or "TERM"


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

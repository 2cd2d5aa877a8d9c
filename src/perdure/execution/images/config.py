"""Image configurations from OCI JSON, and changes to them in Dockerfile words (``--change`` of ``import``)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

import msgspec

from perdure.errors import ImageInvalid, InvalidValue
from perdure.execution.images.image import ImageConfig
from perdure.model import HealthCheck

_HINT = "Save the image again with docker, podman or skopeo."


def from_oci(document: Any, name: str) -> ImageConfig:
    """The configuration in an OCI or Docker image configuration document. Raises ImageInvalid for wrong types."""
    config = (document.get("config") if isinstance(document, dict) else None) or {}
    try:
        config = msgspec.convert(config, dict[str, Any])
        environment = msgspec.convert(config.get("Env") or [], list[str])
        return ImageConfig(
            entrypoint=msgspec.convert(config.get("Entrypoint") or [], list[str]),
            cmd=msgspec.convert(config.get("Cmd") or [], list[str]),
            env={key: value for key, _, value in (setting.partition("=") for setting in environment)},
            cwd=msgspec.convert(config.get("WorkingDir") or "", str),
            user=msgspec.convert(config.get("User") or "", str),
            exposed_ports=sorted(msgspec.convert(config.get("ExposedPorts") or {}, dict[str, Any])),
            stop_signal=msgspec.convert(config.get("StopSignal") or "", str),
            labels=msgspec.convert(config.get("Labels") or {}, dict[str, str]),
            volumes=sorted(msgspec.convert(config.get("Volumes") or {}, dict[str, Any])),
            health=_health(config.get("Healthcheck")),
        )
    except msgspec.ValidationError as error:
        raise ImageInvalid(f"{name}: the image's configuration is malformed: {error}", hint=_HINT) from None


def to_oci(config: ImageConfig) -> dict[str, Any]:
    """The ``config`` member of an OCI image configuration: what ``from_oci`` reads."""
    found: dict[str, Any] = {
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "Env": [f"{name}={value}" for name, value in config.env.items()],
        "WorkingDir": config.cwd,
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "StopSignal": config.stop_signal,
        "Labels": config.labels,
        "Volumes": {volume: {} for volume in config.volumes},
        "Healthcheck": _healthcheck(config.health),
    }
    return {name: value for name, value in found.items() if value}


def _health(document: Any) -> HealthCheck | None:
    """docker's ``Healthcheck``, whose times are nanoseconds; the OCI specification reserves the name."""
    if not document:
        return None
    found = msgspec.convert(document, dict[str, Any])

    def seconds(name: str) -> float:
        return max(0.0, msgspec.convert(found.get(name) or 0, float) / 1e9)

    return HealthCheck(
        test=msgspec.convert(found.get("Test") or [], list[str]),
        interval_s=seconds("Interval"),
        timeout_s=seconds("Timeout"),
        retries=max(0, msgspec.convert(found.get("Retries") or 0, int)),
        start_period_s=seconds("StartPeriod"),
        start_interval_s=seconds("StartInterval"),
    )


def _healthcheck(health: HealthCheck | None) -> dict[str, Any]:
    """What ``_health`` reads."""
    if health is None:
        return {}
    found: dict[str, Any] = {
        "Test": health.test,
        "Interval": int(health.interval_s * 1e9),
        "Timeout": int(health.timeout_s * 1e9),
        "Retries": health.retries,
        "StartPeriod": int(health.start_period_s * 1e9),
        "StartInterval": int(health.start_interval_s * 1e9),
    }
    return {name: value for name, value in found.items() if value}


def changed(config: ImageConfig, changes: Iterable[str]) -> ImageConfig:
    """Apply Dockerfile instructions: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR.

    Raises InvalidValue, naming the instruction, for any other and for wrong arguments.
    """
    for change in changes:
        word, _, rest = change.strip().partition(" ")
        rest = rest.strip()
        if not rest:
            raise _wrong(change, "it has no argument")
        match word.upper():
            case "CMD":
                config = msgspec.structs.replace(config, cmd=_command(rest))
            case "ENTRYPOINT":
                config = msgspec.structs.replace(config, entrypoint=_command(rest), cmd=[])
            case "ENV":
                config = msgspec.structs.replace(config, env={**config.env, **_pairs(rest, change)})
            case "LABEL":
                config = msgspec.structs.replace(config, labels={**config.labels, **_pairs(rest, change)})
            case "EXPOSE":
                ports = {port if "/" in port else f"{port}/tcp" for port in rest.split()}
                config = msgspec.structs.replace(config, exposed_ports=sorted({*config.exposed_ports, *ports}))
            case "VOLUME":
                volumes = _array(rest) or _words(rest, change)
                config = msgspec.structs.replace(config, volumes=sorted({*config.volumes, *volumes}))
            case "STOPSIGNAL":
                config = msgspec.structs.replace(config, stop_signal=rest)
            case "USER":
                config = msgspec.structs.replace(config, user=rest)
            case "WORKDIR":
                config = msgspec.structs.replace(config, cwd=rest)
            case _:
                raise _wrong(change, f"{word} cannot be changed")
    return config


def _wrong(change: str, why: str) -> InvalidValue:
    known = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR"
    return InvalidValue(f"--change {change!r}: {why}", hint=f"Changes are Dockerfile instructions: {known}.")


def _array(text: str) -> list[str] | None:
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.DecodeError:
        return None


def _command(text: str) -> list[str]:
    """The JSON array form, or the shell form, which runs through /bin/sh as docker's does."""
    array = _array(text)
    return ["/bin/sh", "-c", text] if array is None else array


def _words(text: str, change: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise _wrong(change, str(error)) from None


def _pairs(text: str, change: str) -> dict[str, str]:
    """``KEY=VALUE …`` with quotes, or the old form ``KEY VALUE``."""
    words = _words(text, change)
    if words and "=" not in words[0]:
        key, _, value = text.partition(" ")
        if not value.strip():
            raise _wrong(change, "KEY=VALUE is wanted")
        return {key: value.strip()}
    if not all(word.partition("=")[0] and "=" in word for word in words):
        raise _wrong(change, "KEY=VALUE is wanted")
    return {key: value for key, _, value in (word.partition("=") for word in words)}

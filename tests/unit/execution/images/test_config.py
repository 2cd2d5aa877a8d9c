from __future__ import annotations

import pytest

from perdure.errors import ImageInvalid, InvalidValue
from perdure.execution.images.config import changed, from_oci, to_oci
from perdure.execution.images.image import ImageConfig
from perdure.model import HealthCheck


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ('CMD ["python3", "-m", "x"]', "cmd", ["python3", "-m", "x"]),
        ("cmd python3 -m x", "cmd", ["/bin/sh", "-c", "python3 -m x"]),
        ('ENTRYPOINT ["/bin/a"]', "entrypoint", ["/bin/a"]),
        ("ENV A=1 B='two words' C=x=y", "env", {"P": "0", "A": "1", "B": "two words", "C": "x=y"}),
        ("ENV A the rest of it", "env", {"P": "0", "A": "the rest of it"}),
        ('LABEL a.b="c d"', "labels", {"a.b": "c d"}),
        ("EXPOSE 80 53/udp", "exposed_ports", ["53/udp", "80/tcp"]),
        ("VOLUME /a /b", "volumes", ["/a", "/b"]),
        ('VOLUME ["/a b"]', "volumes", ["/a b"]),
        ("STOPSIGNAL SIGQUIT", "stop_signal", "SIGQUIT"),
        ("USER app:users", "user", "app:users"),
        ("WORKDIR /srv", "cwd", "/srv"),
    ],
)
def test_changes(change, field, value):
    assert getattr(changed(ImageConfig(env={"P": "0"}), [change]), field) == value


def test_an_entrypoint_resets_the_command_as_docker_does():
    assert changed(ImageConfig(cmd=["old"]), ["ENTRYPOINT /a"]).cmd == []


@pytest.mark.parametrize("change", ["", "CMD", "RUN x", "ENV A", "ENV A=1 B", "ENV 'A=1", "LABEL =x", "ONBUILD CMD x"])
def test_changes_that_are_none(change):
    with pytest.raises(InvalidValue, match="--change") as caught:
        changed(ImageConfig(), [change])
    assert "Dockerfile" in caught.value.hint


def test_a_health_check_of_an_image():
    """Its times are nanoseconds; what is wrong with it is told."""
    found = from_oci({"config": {"Healthcheck": {"Test": ["CMD", "x"], "Interval": 5_000_000_000, "Retries": 2}}}, "i")
    assert found.health == HealthCheck(test=["CMD", "x"], interval_s=5, retries=2)
    assert from_oci({"config": to_oci(found)}, "i") == found
    assert from_oci({"config": {}}, "i").health is None
    with pytest.raises(ImageInvalid, match="malformed"):
        from_oci({"config": {"Healthcheck": {"Test": "curl"}}}, "i")

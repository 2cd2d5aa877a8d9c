"""What every test stands on."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# How fast examples are made says how busy the machine is, and nothing about the code.
settings.register_profile("perdure", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("perdure")


def pytest_configure() -> None:
    # A shell starts what is put in the background (as CI may be) with SIGINT ignored, and programs inherit that: the
    # ones that tests start are in the foreground, where Ctrl-C ends them.
    signal.signal(signal.SIGINT, signal.default_int_handler)

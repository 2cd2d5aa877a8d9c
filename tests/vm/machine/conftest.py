"""What tests of bare machines need: assets, and a launcher that answers; no node and no image.

They share home and emulated host with the other vm tests: whichever comes first starts it, the session's end stops it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perdure.host import assets as host_assets
from perdure.host import below
from perdure.host.assets import Assets
from perdure.host.paths import Home
from perdure.model import LauncherAddress

from ..conftest import home_of_tests


@pytest.fixture(scope="session")
def machine_home() -> Home:
    return home_of_tests()


@pytest.fixture(scope="session")
def assets(machine_home: Home) -> Assets:
    return host_assets.ensure(machine_home)


@pytest.fixture(scope="session")
def launcher_address(machine_home: Home, assets: Assets) -> Iterator[LauncherAddress]:
    yield below.ensure(machine_home, assets)
    below.stop(machine_home)

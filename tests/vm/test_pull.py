"""An image from a registry, run without anybody having pulled it."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.client.node import NodeClient
from perdure.errors import Unsupported
from perdure.execution.images.library import ImageLibrary
from perdure.testing.servers import registry_server

pytestmark = pytest.mark.vm
IMAGE = "perdure-test"
Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]


def test_an_image_is_pulled_and_run(fcrun: Fcrun, client: NodeClient, tmp_path: Path) -> None:
    with registry_server(tmp_path / "registry") as host:
        name = f"{host}/team/app:v1"
        client.import_image(name, root_tar(client), changes=['ENTRYPOINT ["/bin/echo", "pulled"]'])
        pushed = fcrun("push", name)
        assert pushed.returncode == 0, pushed.stderr
        client.remove_image(name)
        done = fcrun("run", "--rm", name, "and", "run")
        assert (done.returncode, done.stdout) == (0, "pulled and run\n")
        assert done.stderr.startswith(f"Unable to find image '{name}' locally\n")
        client.remove_image(name)


def root_tar(client: NodeClient) -> bytes:
    """The root file system of the tests' image, of which its only layer is the tar."""
    try:
        [layer] = ImageLibrary(client.home.images).parts(IMAGE).layers
    except Unsupported as error:
        pytest.skip(f"{error}: the tests' image is from a time before layers were kept")
    return gzip.decompress(layer.path.read_bytes())

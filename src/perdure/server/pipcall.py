"""``python -P -m perdure.server.pipcall``: pip brings the wheels of some requirements, perhaps for another Python.

Its order is JSON on stdin: {"parent": PID (it ends with that), "requirements", "requires_python", "folder": where the
wheels go, "log": a file for pip's own, "python": null (this one), or {"version", "platforms", "markers"}}. Exit status:
that of pip; 3: the Python is not one that is required.

What pip has no option for is changed in it. It judges markers (``; python_version < "3.11"``) by the Python that it
runs in, also when it is told to look for wheels of another one (pip issue 11664). And it would run what a source
distribution that a wheel requires by its URL has in it: nothing of an agent runs on the server before its run does.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

from pip._internal.cli.main import main as pip
from pip._internal.distributions.sdist import SourceDistribution
from pip._internal.exceptions import InstallationError
from pip._vendor.packaging import markers
from pip._vendor.packaging.specifiers import InvalidSpecifier, SpecifierSet

from perdure.linux import process

NOT_THIS_PYTHON = 3  # ``server.pips`` knows it, too


def _not_built(distribution: Any, *args: Any, **more: Any) -> NoReturn:
    raise InstallationError(f"No sources permitted for {distribution.req}: it has no wheel")


def main() -> int:
    order = json.load(sys.stdin)
    process.die_with(order["parent"])
    # Both are there, or this pip is not one that is known: nothing is brought then.
    assert callable(SourceDistribution.prepare_distribution_metadata)
    setattr(SourceDistribution, "prepare_distribution_metadata", _not_built)  # noqa: B010 - mypy refuses it else
    python = order["python"]
    target = []
    if python is not None:
        of_it = python["markers"]
        markers.default_environment = lambda: dict(of_it)
        if not markers.Marker(f"python_full_version == '{of_it['python_full_version']}'").evaluate():
            sys.stderr.write("ERROR: this pip judges markers in another way\n")
            return 1
        target = ["--implementation", "cp", "--python-version", python["version"]]
        target += [f"--platform={name}" for name in python["platforms"]]
    if order["requires_python"] and not _is_one(order["requires_python"]):
        return NOT_THIS_PYTHON
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar=off", f"--log={order['log']}"]
    options += ["--only-binary=:all:", f"--dest={order['folder']}", *target]
    return pip(["download", *options, "--", *order["requirements"]])


def _is_one(required: str) -> bool:
    version = markers.default_environment()["python_full_version"]
    try:
        return bool(SpecifierSet(required).contains(version, prereleases=True))
    except InvalidSpecifier as error:
        sys.stderr.write(f"ERROR: requires-python: {error}\n")
        return False


if __name__ == "__main__":
    sys.exit(main())

"""Type what a new user types, and write down what came: docs/session.md.

    PERDURE_HOME=… python scripts/record_session.py

It needs a home with nothing in it, and port 8080 of this machine. Ids and times are as they came.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEADLINE_S = 60.0
PAGE = ROOT / "docs" / "session.md"
HEAD = """# A first session

Typed as the [README](../README.md) says, and written down by `scripts/record_session.py`: two cores without KVM, so
everything below the line was emulated, some 40 times slower than it would be with it. Lines after `$` were typed.

```console
"""
SESSION = """
fcrun import --packages nginx-light,python3-minimal web
fcrun images
fcrun run --rm web echo "hello from a microVM"
fcrun run -d --name site -p 8080:80 --label team=docs web sh -c 'mkdir -p /var/log/nginx; exec nginx -g "daemon off;"'
# until nginx is up
fcrun ps
curl -s http://127.0.0.1:8080/ | head -4
echo '<h1>kept</h1>' > index.html
fcrun cp index.html site:/var/www/html/index.html
fcrun exec site sh -c 'cat /var/www/html/index.html; uname -r'
fcrun suspend site
fcrun ps
curl -s http://127.0.0.1:8080/
fcrun ps --format 'table {{.Names}}\\t{{.Status}}\\t{{.Ports}}'
fcrun fork -n 2 site
fcrun stats --no-stream
fcrun diff site | head -5
fcrun commit -m "with a page of its own" site web:kept
fcrun history web:kept | head -3
fcrun run --rm --egress none web python3 -c 'import socket; socket.create_connection(("192.0.2.1", 80), 3)'
fcrun run --rm --network none web sh -c 'exit 3'; echo $?
fcrun runn web
fcrun snapshot explain site | head -12
fcrun system df
fcrun rm -f $(fcrun ps -aq)
fcrun network ls
"""


def _await_page() -> None:
    """Until the server answers: a connection is closed at once while it is not up. Raises OSError at a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            urllib.request.urlopen("http://127.0.0.1:8080/", timeout=DEADLINE_S).close()
            return
        except (OSError, http.client.HTTPException):
            if time.monotonic() > deadline:
                raise


def main() -> int:
    scratch = ROOT / "build" / "session"
    scratch.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    page = HEAD
    for line in SESSION.strip().splitlines():
        if line.startswith("#"):
            _await_page()
            continue
        done = subprocess.run(
            ["bash", "-c", line], cwd=scratch, env=environment, capture_output=True, text=True, timeout=300
        )
        said = (done.stdout + done.stderr).rstrip("\n")
        page += f"$ {line}\n" + (f"{said}\n" if said else "")
        print(page[-len(said) - len(line) - 4 :], end="", flush=True)
    PAGE.write_text(page.replace(str(ROOT), "/root/perdure") + "```\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

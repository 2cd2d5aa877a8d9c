"""An agent with a browser: it fills in a form, a person looks at it, and the same page is sent days later.

fcrun import --packages chromium-headless-shell,python3-minimal,libpython3-stdlib browser
perdure run examples/browser.py:browser --input '{"name": "owl"}'
perdure approve RUN

While the person looks, the machine sleeps, and Chromium with it: its processes, the page with its timers, what was
typed and not sent, and the connection on which a server tells the page news. It is asked in the DevTools protocol.
"""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from perdure import Context, agent

PAGE = b"""<!doctype html><title>Owls</title>
<form method=post><input name=name><button>Send</button></form>
<script>
  var ticks = 0, news = 0;
  setInterval(() => ticks++, 100);
  new EventSource("/news").onmessage = () => news++;
  localStorage.visits = 1 + Number(localStorage.visits || 0);
</script>"""
STATE = "({ticks, news, name: document.forms[0].name.value, visits: localStorage.visits, at: performance.timeOrigin})"


@agent(image="browser", memory_mib=1024)
def browser(ctx: Context, name: str) -> dict[str, object]:
    site, page = Site(), Chromium()
    page.ask("Page.navigate", url=site.url)
    page.until("document.readyState == 'complete' && news > 0")
    page.value(f"document.forms[0].name.value = {json.dumps(name)}")
    before = page.value(STATE)
    verdict = ctx.approval("Send this form?", show=before, timeout="7d")
    page.until(f"news > {before['news']} && ticks > {before['ticks']}")  # the page lives on
    after = page.value(STATE) | {"connections": site.connections}
    if verdict.approved:
        page.value("document.forms[0].submit()")
        site.sent.wait()
    return {"before": before, "after": after, "sent": site.forms}


class Chromium:
    """A headless one with one page, asked over a pair of pipes."""

    def __init__(self) -> None:
        theirs, ours = os.pipe()
        our_end, their_end = os.pipe()
        words = ["chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "about:blank"]
        moves = [(os.POSIX_SPAWN_DUP2, theirs, 3), (os.POSIX_SPAWN_DUP2, their_end, 4)]  # where it looks for them
        self.pid = os.posix_spawnp(words[0], words, os.environ, file_actions=moves)
        os.close(theirs)
        os.close(their_end)
        self._asks, self._answers = os.fdopen(ours, "wb"), os.fdopen(our_end, "rb")
        self._count, self._rest, self._session = 0, b"", {}
        targets = self.ask("Target.getTargets")["targetInfos"]
        target = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = {"sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        asked = {"id": self._count, "method": method, "params": parameters, **self._session}
        self._asks.write(json.dumps(asked).encode() + b"\0")
        self._asks.flush()
        while True:
            while b"\0" not in self._rest:
                more = self._answers.read1()
                if not more:
                    raise EOFError("Chromium has ended")
                self._rest += more
            said, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(said)
            if answer.get("id") == self._count:
                return answer["result"]

    def value(self, script: str) -> Any:
        """What a script in the page gives; a promise is waited for."""
        given = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return given["result"].get("value")

    def until(self, condition: str) -> None:
        look = "new Promise(done => { const look = () => CONDITION ? done() : setTimeout(look, 50); look() })"
        self.value(look.replace("CONDITION", condition))


class Site:
    """The page's server, in the same machine: any other would do."""

    def __init__(self) -> None:
        self.forms: list[dict[str, list[str]]] = []
        self.connections, self.sent = 0, threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/news":
                    self._tell_news()
                else:
                    self._page()

            def do_POST(self) -> None:
                site.forms.append(parse_qs(self.rfile.read(int(self.headers["content-length"])).decode()))
                self._page()
                site.sent.set()

            def _page(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(PAGE)

            def _tell_news(self) -> None:
                site.connections += 1
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                while not site.sent.wait(0.2):
                    self.wfile.write(b"data: news\n\n")

            def log_message(self, *_: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}/"

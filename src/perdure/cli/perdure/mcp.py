"""perdure mcp"""

from __future__ import annotations

import argparse

NAME = "mcp"
HELP = "Offer sandboxes and runs to MCP clients, as tools"
GROUP = "This machine"
DESCRIPTION = (
    "Serve the Model Context Protocol: on stdin and stdout, to the client that starts this command; with --http on a "
    "port of this machine, to clients that show the token. Its tools are those of sandboxes and runs. Needs the extra "
    "'perdure[mcp]'."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--http",
        metavar="HOST:PORT",
        help="streamable HTTP at http://HOST:PORT/mcp, HOST being 127.0.0.1, ::1 or localhost; port 0: one that is "
        "free (its url and token are in HOME/run/mcp-PORT.json)",
    )
    parser.add_argument(
        "--token-file", metavar="FILE", help="the token that HTTP clients show (usual: a new one at each start)"
    )


def run(options: argparse.Namespace) -> int:
    from perdure.errors import InvalidValue, Unsupported
    from perdure.host.paths import Home

    if options.token_file and not options.http:
        raise InvalidValue("--token-file is for --http", hint="On stdio no token is needed: leave it out.")
    token = _token(options.token_file) if options.token_file else ""
    try:
        from perdure.integrations.mcp import server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("mcp", "mcp_types", "pydantic", "uvicorn"):
            raise
        raise Unsupported(f"there is no module {error.name}", hint="pip install 'perdure[mcp]'") from error
    if options.http:
        server.over_http(Home.find(), options.http, token)
    else:
        server.over_stdio(Home.find())
    return 0


def _token(path: str) -> str:
    from perdure.errors import InvalidValue

    try:
        with open(path, encoding="utf-8") as file:
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue(f"--token-file {path}: {getattr(error, 'strerror', None) or error}") from error
    if not token or not token.isascii() or not token.isprintable():
        raise InvalidValue(f"--token-file {path}: no token is in it", hint="One line of ASCII: openssl rand -hex 16")
    return token

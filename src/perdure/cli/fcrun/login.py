"""fcrun login"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun import _registry

NAME = "login"
HELP = "Log in to a registry"
GROUP = "Images"
DESCRIPTION = (
    f"{HELP} (Docker Hub without SERVER). The registry is asked first; then the login is kept where docker, podman and "
    "skopeo look for it: in DOCKER_CONFIG/config.json (~/.docker), or by the credential helper that is named there."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-u", "--username", default="", metavar="NAME")
    parser.add_argument("-p", "--password", default=None, metavar="WORD", help="others see it in the list of processes")
    parser.add_argument("--password-stdin", action="store_true", help="read it from standard input")
    _registry.add_options(parser)
    parser.add_argument("server", nargs="?", default="", metavar="SERVER", help="HOST[:PORT]")


def run(options: argparse.Namespace) -> int:
    import sys

    from perdure.cli.fcrun._node import node
    from perdure.host import logins

    host, account = place(options.server)
    user, password = _asked(options, account)
    with node() as client:
        client.registries.check_login(host, (user, password), tls_verify=options.tls_verify)
    where = logins.keep(account, user, password)
    if not where.startswith("docker-credential-"):
        sys.stderr.write(f"WARNING! Your credentials are stored unencrypted in '{where}'.\n")
    print("Login Succeeded")
    return 0


def place(server: str) -> tuple[str, str]:
    """(host, what its login is kept under). Raises InvalidValue."""
    from perdure.errors import InvalidValue
    from perdure.formats.references import HUB, parse

    host = server.removeprefix("https://").removeprefix("http://").partition("/")[0] or HUB
    try:
        reference = parse(f"{host}/library/any")
    except InvalidValue:
        raise InvalidValue(f"{server!r} is no registry", hint="Write HOST or HOST:PORT.") from None
    if reference.host != host and reference.host != HUB:
        raise InvalidValue(f"{server!r} is no registry", hint="Write HOST or HOST:PORT.")
    if reference.path != "library/any":
        raise InvalidValue(
            f"{server!r} is no registry: it is a part of a name on Docker Hub", hint="Write HOST:PORT, or HOST.DOMAIN."
        )
    return reference.host, reference.account


def _asked(options: argparse.Namespace, account: str) -> tuple[str, str]:
    """User and password. Raises InvalidValue where nobody can be asked."""
    import sys

    from perdure.errors import InvalidValue

    if options.password is not None and options.password_stdin:
        raise InvalidValue("--password and --password-stdin exclude each other")
    if options.password_stdin:
        if not options.username:
            raise InvalidValue("--password-stdin needs --username", hint="fcrun login -u NAME --password-stdin SERVER")
        password = sys.stdin.read().rstrip("\r\n")
    elif options.password is not None:
        sys.stderr.write("WARNING! Using --password via the CLI is insecure. Use --password-stdin.\n")
        password = options.password
    else:
        password = ""
    user = options.username
    if (not user or not password) and not options.password_stdin and not sys.stdin.isatty():
        raise InvalidValue("nobody can be asked for a password here", hint="Use --username and --password-stdin.")
    if not user:
        user = _user(account)
    if not password and not options.password_stdin:
        import getpass

        password = getpass.getpass("Password: ")
    if not user or not password:
        raise InvalidValue("a user name and a password are needed")
    if ":" in user:
        raise InvalidValue(f"{user!r}: a user name has no colon")
    return user, password


def _user(account: str) -> str:
    from perdure.errors import PerdureError
    from perdure.host.logins import credentials

    try:
        known = credentials(account)
    except PerdureError:
        known = None
    return input(f"Username ({known[0]}): " if known else "Username: ").strip() or (known[0] if known else "")

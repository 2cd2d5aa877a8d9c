"""The certificate of a daemon of this home: one that a person gives, or one that is made at the first start.

``cryptography`` is not used for it: one key and one certificate are all that is needed, once in a home's life, and
the ``openssl`` program, which is nearly everywhere, does that.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

from perdure.errors import InvalidValue, NotFound

VALID_DAYS = 3650
OPENSSL_S = 60.0


def context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a server, TLS 1.2 or newer. Raises InvalidValue that names the file."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        found.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise InvalidValue(
            f"no TLS with the certificate {certificate} and the key {key}: {error}",
            hint="They are PEM files that belong together, the key without a password, readable by the daemon.",
        ) from error
    return found


def _no_password() -> str:
    raise ValueError("the key has a password")


def fingerprint(certificate: Path) -> str:
    """SHA-256 of the (first) certificate, in hex: what a client pins."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(_first(certificate.read_text()))).hexdigest()


def _first(text: str) -> str:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return begin + text.partition(begin)[2].partition(end)[0] + end


def ensure(folder: Path, host: str, *, name: str = "fcrund", table: str = "node") -> tuple[Path, Path]:
    """(certificate, key) in ``folder``, made unless they are there. ``host``: what the daemon listens on; ``name``: the
    daemon's; ``table``: of settings.toml, where a person may give another one. Who calls it has the home's lock.

    Raises NotFound without openssl, InvalidValue with its words.
    """
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if certificate.exists() and key.exists():
        return certificate, key
    if (program := shutil.which("openssl")) is None:
        raise NotFound(
            f"openssl is not installed: {name} cannot make a certificate",
            hint=f"apt-get install openssl, or give [{table}] tls_certificate and tls_key.",
        )
    folder.mkdir(mode=0o700, exist_ok=True)
    fresh = folder / "key.pem.new", folder / "certificate.pem.new"
    command = [
        program, "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-sha256",
        "-days", str(VALID_DAYS), "-subj", f"/CN={name}", "-addext", f"subjectAltName={_names(host)}",
        "-keyout", str(fresh[0]), "-out", str(fresh[1]),
    ]  # fmt: skip
    os.close(os.open(fresh[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))  # never readable for others
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=OPENSSL_S, check=False)
        if done.returncode != 0:
            raise InvalidValue(f"openssl made no certificate: {done.stderr.strip()[-400:]}")
        for path in fresh:
            _sync(path)
        certificate.unlink(missing_ok=True)  # of a key that is gone: it never lies beside another one
        fresh[0].replace(key)
        _sync(folder)
        fresh[1].replace(certificate)
        _sync(folder)
    finally:
        for path in fresh:
            path.unlink(missing_ok=True)
    return certificate, key


def _sync(path: Path) -> None:
    """What clients pin is there after a power loss, too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(host: str) -> str:
    """What clients may call it: this machine's name, and what it listens on, where that is one."""
    names = {"DNS:localhost": 0, "IP:127.0.0.1": 0, "IP:::1": 0, f"DNS:{socket.gethostname()[:63]}": 0}
    try:
        address = ipaddress.ip_address(host)
        if not address.is_unspecified:
            names[f"IP:{address}"] = 0
    except ValueError:
        names[f"DNS:{host}"] = 0
    return ",".join(names)

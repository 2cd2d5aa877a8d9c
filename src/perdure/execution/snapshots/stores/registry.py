"""A repository of a registry as a store of snapshots: ``oci://HOST[:PORT]/REPOSITORY``, ``oci+http://`` without TLS."""

from __future__ import annotations

from perdure.errors import InvalidValue, SnapshotInvalid
from perdure.execution.registry import repository
from perdure.execution.registry.contract import checked
from perdure.execution.registry.repository import Repository
from perdure.execution.registry.retry import PATIENCE, Patience
from perdure.formats.manifest import LIMIT_BYTES, MANIFEST


class RegistryStore(Repository):
    """One repository."""

    invalid = SnapshotInvalid

    def __init__(self, host: str, name: str, *, tls: bool = True, patience: Patience = PATIENCE) -> None:
        if not repository.is_valid(host, name):
            raise InvalidValue(
                f"{host}/{name} is not a repository of a registry",
                hint="Write it as oci://HOST/REPOSITORY, the repository in small letters.",
            )
        super().__init__(host, name, url=f"oci{'' if tls else '+http'}://{host}/{name}", tls=tls, patience=patience)

    def manifest(self, name: str) -> bytes:
        return checked(name, self.document(name, MANIFEST, LIMIT_BYTES)[0])

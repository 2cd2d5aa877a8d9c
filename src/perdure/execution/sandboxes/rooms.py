"""What all sandboxes of a node share: where their files are, what they stand on, and whom they ask and tell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from perdure.execution.guest.session import GuestCall
from perdure.execution.images.library import ImageLibrary
from perdure.execution.network.networks import Networks
from perdure.execution.sandboxes.admission import Admission
from perdure.execution.sandboxes.ground import Ground
from perdure.execution.sandboxes.record import Record
from perdure.execution.sandboxes.volumes import Volumes
from perdure.execution.snapshots.store import Store
from perdure.host.paths import Home
from perdure.model import CallsEndpoint


@dataclass(frozen=True)
class Rooms:
    """One for all of them; made by ``Sandboxes``."""

    home: Home
    ground: Ground
    images: ImageLibrary
    store: Store
    answer_call: Callable[[CallsEndpoint | None, GuestCall], Awaitable[None]]  # raises StaleEpoch: end the machine
    emit: Callable[[str, Record, dict[str, Any]], None]  # a NodeEvent
    named_by_others: Callable[[str, str], bool]  # (snapshot, sandbox): whether another sandbox needs the snapshot
    drop_once_read: Callable[[list[str], str], None]  # (snapshots, sandbox): delete later what was being read just now
    before_moving: Callable[[str], None]  # (sandbox): what is done for it in the background should end now
    networks: Networks
    others: Callable[[], Iterable[Record]]  # the records of all sandboxes
    disks_bytes: int  # what the kept disks of suspended sandboxes may take (``keptdisks``)
    volumes: Volumes
    admission: Admission = field(default_factory=Admission)

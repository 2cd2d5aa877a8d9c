"""Blobs while others move them."""

from __future__ import annotations

import threading

from perdure.execution.images.blobs import Blobs


def test_a_blob_that_is_settled_is_here_at_every_moment(tmp_path):
    blobs = Blobs(tmp_path)
    missed: list[str] = []
    moving: list[str] = []  # the newest is on its way
    ended = threading.Event()
    with blobs.making():
        digests = [blobs.add(b"%d" % number) for number in range(300)]

        def settle() -> None:
            for digest in digests:
                moving.append(digest)
                blobs.settle([digest])
            ended.set()

        mover = threading.Thread(target=settle)
        mover.start()
        while not ended.is_set():
            missed += [digest for digest in moving[-1:] if blobs.find(digest) is None]
        mover.join()
    assert missed == []

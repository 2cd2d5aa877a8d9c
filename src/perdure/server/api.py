"""The server's HTTP API, on ``home.socket("perdured")`` and a loopback TCP port (``run/server.json`` has url and token).

On TCP every request carries ``Authorization: Bearer TOKEN``; on the socket (mode 0600) the file's rights decide.
Bodies are JSON. Errors: ``{"error": {"code", "message", "hint", "details"}}`` with the error's HTTP status. A run is
named by its id, a unique prefix of it, or its name.

==========================================  =====================================================================
POST /v1/runs                               start: ``StartRequest`` -> 201 ``RunInfo`` (200 and the older run when
                                            ``key`` was used before)
GET  /v1/runs                               ``{"runs": [RunInfo, ...]}``, newest first; ``?state=running,waiting``
GET  /v1/runs/{id}                          ``RunInfo``; ``?wait_s=N``: answers when the run has ended, or after N s
GET  /v1/runs/{id}/entries                  NDJSON of ``Entry``; ``?after=SEQ&limit=N&branch=B&follow=1&compact=1``:
                                            ``follow`` ends after the entry that ends the run; ``compact`` leaves large
                                            values as references
GET  /v1/runs/{id}/branches                 ``{"branches": [{"branch", "parent", "fork_seq", "seq"}, ...]}``
GET  /v1/runs/{id}/output                   the program's output so far: text/plain (its tail after the run ended)
POST /v1/runs/{id}/signal                   ``{"name", "value"}`` -> ``RunInfo``
POST /v1/runs/{id}/approve                  ``{"wait_id"?, "approved", "comment"?, "by"?}`` -> ``{"wait": {...}}``;
                                            409 ``conflict`` when not waiting, or answered already (details: by, at)
POST /v1/runs/{id}/cancel                   ``{"reason"?}`` -> ``RunInfo``
POST /v1/runs/{id}/verify                   recompute the hash chain: ``{"entries", "branches", "blobs"}``
GET  /v1/status                             ``{"pid", "url", "version", "home", "started", "runs": {STATE: n}, "node": ...}``
GET  /v1/blobs/{digest}                     bytes
POST /v1/calls                              from a node (docs/design/0001-contracts.md, 6); its own token
==========================================  =====================================================================

``StartRequest``: either ``{"source": PYTHON, "file": NAME.py, "function": NAME}`` or ``{"image", "command": [..]}``, and
``input``, ``key``, ``name``, ``image``, ``memory_mib``, ``vcpus``, ``disk_mib``, ``env``.
"""

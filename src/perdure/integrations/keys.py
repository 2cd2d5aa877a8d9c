"""Names of sessions, and keys of entries, out of what frameworks call things by."""

from __future__ import annotations

import hashlib
import json

PLAIN_MAX_BYTES = 200


def joined(*parts: str | int | float) -> str:
    """One text for several, different wherever they are; of long ones the digest. InvalidValue comes from the server
    for what is no text."""
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    content = text.encode("utf-8", "surrogatepass")
    return text if len(content) <= PLAIN_MAX_BYTES and text.isprintable() else hashlib.sha256(content).hexdigest()

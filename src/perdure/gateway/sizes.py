"""How many tokens a text is, about, where nobody has counted them. Pure."""

from __future__ import annotations

BYTES_A_TOKEN = 4  # of English text, about; of JSON around it and other languages it is fewer


def tokens_of(size_bytes: int) -> int:
    """About how many tokens so much text is."""
    return -(-size_bytes // BYTES_A_TOKEN)

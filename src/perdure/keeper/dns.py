"""Messages about names (DNS, RFC 1035) as bytes and values: only what a keeper reads and says."""

from __future__ import annotations

import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER = struct.Struct(">HHHHHH")  # id, flags, questions, answers, authorities, additional
A, AAAA = 1, 28
SERVER_FAILED, NO_SUCH_NAME, REFUSED = 2, 3, 5
MESSAGE_MAX = 65535
NOISE = (ValueError, IndexError, struct.error)  # what reading raises for bytes that are no such message
RESPONSE = 0x8000
_OPT, _IN = 41, 1
_AUTHORITATIVE, _RECURSION = 0x0400, 0x0180  # the last: desired and available
_OPCODE, _WISHES = 0x7800, 0x0110  # recursion desired, checking disabled
_PAYLOAD_BYTES = 4096  # of an answer, to who says that it understands more than 512 (RFC 6891)
_TTL_S = 5  # of a name of a sandbox, which may move
_LABEL_MAX, _NAME_MAX = 63, 255


class Question:
    """The one question of a message: its own bytes, its name in lower case, its type."""

    __slots__ = ("asking", "data", "flags", "kind", "name", "number")

    def __init__(self, message: bytes) -> None:
        """Raises NOISE where it is not one question of the internet."""
        self.number, self.flags, questions, _, _, _ = HEADER.unpack_from(message)
        if questions != 1:
            raise ValueError("not one question")
        labels, at = [], HEADER.size
        while size := message[at]:
            if size > _LABEL_MAX:
                raise ValueError("a question's name is not compressed")
            labels.append(message[at + 1 : at + 1 + size].decode("ascii").lower())
            at += 1 + size
        self.kind, cls = struct.unpack_from(">HH", message, at + 1)
        if cls != _IN or at - HEADER.size >= _NAME_MAX:
            raise ValueError("not of the internet")
        self.data = message[HEADER.size : at + 5]
        self.name = ".".join(labels)
        extended = message[at + 5 :][:3] == struct.pack(">BH", 0, _OPT)
        self.asking = _asking(self.flags & _WISHES, self.data, extended)

    @property
    def is_asked(self) -> bool:
        """Updates, notices and answers are no questions."""
        return not self.flags & (RESPONSE | _OPCODE)

    def reply(self, addresses: Sequence[str] = (), code: int = 0) -> bytes:
        """An answer of our own."""
        flags = RESPONSE | _RECURSION | (_AUTHORITATIVE if addresses else 0) | code
        head = HEADER.pack(self.number, flags, 1, len(addresses), 0, 0)
        record = struct.pack(">HHHIH", 0xC000 | HEADER.size, A, _IN, _TTL_S, 4)
        return head + self.data + b"".join(record + socket.inet_aton(address) for address in addresses)

    def is_answered_by(self, message: bytes) -> bool:
        """Whether it is an answer to this question, whatever its id. Raises NOISE."""
        said = Question(message)
        return bool(said.flags & RESPONSE) and said.data.lower() == self.data.lower()

    def addresses(self, answer: bytes) -> list[str]:
        """The IPv4 addresses in an answer to it. Raises NOISE."""
        return addresses(answer, HEADER.size + len(self.data))


def question_for(name: str) -> Question:
    """That asks for its addresses. Raises ValueError where no question can hold it."""
    labels = [part.encode("ascii") for part in name.split(".")]
    if not all(0 < len(label) <= _LABEL_MAX for label in labels):
        raise ValueError(f"{name!r} cannot be asked for")
    data = b"".join(bytes([len(label)]) + label for label in labels) + struct.pack(">BHH", 0, A, _IN)
    return Question(HEADER.pack(0, _WISHES & _RECURSION, 1, 0, 0, 1) + data + struct.pack(">BHHIH", 0, _OPT, 0, 0, 0))


def _asking(wishes: int, data: bytes, extended: bool) -> bytes:
    """The same question in our words, without its id: nothing else that a guest says leaves the host."""
    head = struct.pack(">HHHHH", wishes, 1, 0, 0, 1 if extended else 0)
    return head + data + (struct.pack(">BHHIH", 0, _OPT, _PAYLOAD_BYTES, 0, 0) if extended else b"")


def addresses(message: bytes, at: int) -> list[str]:
    """The IPv4 addresses of all answers, which begin at ``at``. Raises NOISE."""
    found = []
    for _ in range(HEADER.unpack_from(message)[3]):
        while size := message[at]:
            if size >= 0xC0:  # a pointer ends a name
                at += 1
                break
            at += 1 + size
        kind, cls, _, length = struct.unpack_from(">HHIH", message, at + 1)
        at += 11
        if kind == A and cls == _IN and length == 4:
            found.append(socket.inet_ntoa(message[at : at + 4]))
        at += length
    return found


def may_be_opened(address: str, *, is_exact: bool) -> bool:
    """Whether a permitted name may stand for it: not for the host itself, nor for what is link-local (where clouds give
    their keys); for a private network only where the name was permitted by itself, not as one below another."""
    first, second, *_ = (int(part) for part in address.split("."))
    if first in (0, 127) or first >= 224 or (first, second) == (169, 254):
        return False
    private = first == 10 or (first == 172 and 16 <= second < 32) or (first, second) == (192, 168)
    return is_exact or not (private or (first == 100 and 64 <= second < 128))

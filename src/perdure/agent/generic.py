"""Generic classes for type checkers only: importing ``typing`` costs a guest dear."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Generic, ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

    class Called(Generic[P, R]): ...

    class Returning(Generic[R]): ...

else:

    class Called:
        __slots__ = ()

        def __class_getitem__(cls, of):
            return cls

    class Returning(Called):
        __slots__ = ()

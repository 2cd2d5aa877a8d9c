"""An error that came over a socket is the class that has its code, whatever is derived from that here."""

from __future__ import annotations

from perdure.errors import MachineFailed, NotFound, from_json
from perdure.host.emulated import _HungError


def test_a_kind_without_a_code_of_its_own_is_not_taken_for_the_one_that_has_it() -> None:
    for error in (MachineFailed("it died"), NotFound("no such thing"), _HungError("it hangs")):
        kind = MachineFailed if isinstance(error, MachineFailed) else NotFound
        assert type(from_json(error.to_json())) is kind

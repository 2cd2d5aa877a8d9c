"""When a schedule is due. Pure; moments are seconds since 1970.

Cron has five fields, in a time zone. Around a change of clocks it does as Debian's cron (through ``cronsim``): a time
of day that the clocks jump over is due at the first moment after the jump, one that comes twice is due the first time;
what is due every so many minutes or hours (a ``*`` in the minute or the hour) follows the time that really passes.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, tzinfo
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from perdure.errors import InvalidValue

FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week")
SHORTEST_S = 1.0
LONGEST_S = 366 * 86400.0


def zone(name: str) -> tzinfo:
    """InvalidValue names it."""
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError; a folder's name is an OSError
        hint = "It is a name of the IANA data base, such as Europe/Berlin, or UTC."
        raise InvalidValue(f"no such time zone: {name!r}", hint=hint) from None


class Cron:
    """A cron expression in a time zone."""

    def __init__(self, expression: str, zone_name: str) -> None:
        """InvalidValue names the field."""
        parts = expression.split()
        if len(parts) != len(FIELDS):
            hint = f"The fields are {', '.join(FIELDS)}: '30 9 * * 1-5' is half past nine on workdays."
            raise InvalidValue(f"cron {expression!r} has {len(parts)} fields, not 5", hint=hint)
        self._expression, self._zone = expression, zone(zone_name)
        try:
            self.after(0.0)
        except CronSimError as error:
            field = str(error).removeprefix("Bad ")
            part = parts[FIELDS.index(field)] if field in FIELDS else expression
            hint = "A field is *, a number, a range 1-5, a list 1,15, or steps */10; a day is one that its month has."
            raise InvalidValue(f"cron {expression!r}: {field} is {part!r}", hint=hint) from None
        except StopIteration:
            raise InvalidValue(f"cron {expression!r} names a day that never comes") from None
        except (AssertionError, TypeError, ValueError, OverflowError) as error:
            raise InvalidValue(f"cron {expression!r} cannot be read: {error}") from None

    def after(self, moment: float) -> float:
        """The first due moment after this one."""
        dues = CronSim(self._expression, datetime.fromtimestamp(math.floor(moment), self._zone))
        while (due := next(dues).timestamp()) <= moment:
            pass  # the hour that comes twice: its first time is over
        return due

    def before(self, moment: float, count: int) -> list[float]:
        """The last ``count`` due moments up to and including this one, oldest first."""
        start = datetime.fromtimestamp(math.floor(moment) + 1, self._zone)
        back = (due.timestamp() for due in CronSim(self._expression, start, reverse=True))
        # Where clocks change by half an hour, the way back has moments that the way forth has not, which counts.
        due, dues = min(islice(back, count + 2)) - 1.0, list[float]()
        while (due := self.after(due)) <= moment:
            dues.append(due)
        return dues[-count:]


class Every:
    """Each so many seconds from a moment on."""

    def __init__(self, every_s: float, since: float) -> None:
        if not SHORTEST_S <= every_s <= LONGEST_S:
            hint = f"It is from {SHORTEST_S:g} second to {LONGEST_S / 86400:g} days."
            raise InvalidValue(f"every_s is {every_s:g}", hint=hint)
        self._every_s, self._since = every_s, since

    def _due(self, number: int) -> float:
        return self._since + number * self._every_s

    def _number(self, moment: float) -> int:
        """Of the last due moment up to and including this one; 0 and less: there is none."""
        number = math.floor((moment - self._since) / self._every_s)
        return number + (self._due(number + 1) <= moment) - (self._due(number) > moment)

    def after(self, moment: float) -> float:
        """The first due moment after this one."""
        return self._due(max(self._number(moment), 0) + 1)

    def before(self, moment: float, count: int) -> list[float]:
        """The last ``count`` due moments up to and including this one, oldest first."""
        newest = self._number(moment)
        return [self._due(number) for number in range(max(newest - count + 1, 1), newest + 1)]

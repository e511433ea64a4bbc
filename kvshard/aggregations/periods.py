"""Periods of a date histogram: lengths counted from 1970, and the days, weeks, months, quarters and years of the calendar in
UTC.

A period is named by its start in microseconds since 1970. Every period of the calendar is made of whole days.

Pure: imports only the standard library.
"""

import re
from dataclasses import dataclass
from datetime import date
from typing import Final

DAY_MICROS: Final = 86_400_000_000
CALENDAR: Final = ("day", "week", "month", "quarter", "year")
_UNITS: Final = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": DAY_MICROS}
_LENGTH = re.compile(r"(\d{1,12})(ms|s|m|h|d)\Z", re.ASCII)
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_MONTHS: Final = {"month": 1, "quarter": 3, "year": 12}


@dataclass(frozen=True, slots=True)
class Period:
    """micros: the length, for those of the calendar the least. unit: of the calendar, else empty."""

    micros: int
    unit: str = ""

    def start_of(self, micros: int) -> int:
        """The start of the period that an instant lies in."""
        if not self.unit:
            return micros // self.micros * self.micros
        day = micros // DAY_MICROS
        if self.unit == "day":
            return day * DAY_MICROS
        if self.unit == "week":
            return (day - (day + 3) % 7) * DAY_MICROS  # 1970-01-01 was a Thursday
        return _first_day(_month_of(day) // _MONTHS[self.unit] * _MONTHS[self.unit]) * DAY_MICROS

    def after(self, start: int) -> int:
        """The start of the period behind the one that starts there."""
        if self.unit not in _MONTHS:
            return start + self.micros
        return _first_day(_month_of(start // DAY_MICROS) + _MONTHS[self.unit]) * DAY_MICROS


def parse_period(text: str) -> Period | None:
    """The period that a request names; None if it is none."""
    if text in CALENDAR:
        days = {"day": 1, "week": 7, "month": 28, "quarter": 90, "year": 365}[text]
        return Period(days * DAY_MICROS, text)
    match = _LENGTH.match(text)
    if match is None:
        return None
    micros = int(match[1]) * _UNITS[match[2]]
    return Period(micros) if 0 < micros <= 2**53 else None


def _month_of(day: int) -> int:
    """Months since the year 0 of the month that a day, counted from 1970, lies in; years beyond the calendar's repeat it.

    The Gregorian calendar repeats itself every 400 years, 146,097 days.
    """
    cycles, within = divmod(day + _EPOCH_DAY - 1, 146_097)
    found = date.fromordinal(within + 1)
    return (cycles * 400 + found.year) * 12 + found.month - 1


def _first_day(month: int) -> int:
    """The first day, counted from 1970, of a month."""
    year, within = divmod(month, 12)
    cycles, year_within = divmod(year - 1, 400)
    return date(year_within + 1, within + 1, 1).toordinal() + cycles * 146_097 - _EPOCH_DAY

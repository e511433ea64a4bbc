from datetime import UTC, datetime, timedelta

import pytest

from kvshard.aggregations.periods import DAY_MICROS, parse_period

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(text: str) -> int:
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("period", "at", "start", "after"),
    [
        ("day", "2024-02-29T23:59:59.999999", "2024-02-29", "2024-03-01"),
        ("week", "2024-01-01", "2024-01-01", "2024-01-08"),
        ("week", "2023-12-31T12:00", "2023-12-25", "2024-01-01"),
        ("week", "1969-12-30", "1969-12-29", "1970-01-05"),
        ("month", "2024-02-29", "2024-02-01", "2024-03-01"),
        ("month", "1969-12-31", "1969-12-01", "1970-01-01"),
        ("quarter", "2024-12-31", "2024-10-01", "2025-01-01"),
        ("year", "0001-06-01", "0001-01-01", "0002-01-01"),
        ("year", "2000-02-29", "2000-01-01", "2001-01-01"),
        ("90m", "1970-01-01T01:29:59", "1970-01-01", "1970-01-01T01:30"),
        ("90m", "1969-12-31T23:59", "1969-12-31T22:30", "1970-01-01"),
        ("250ms", "2020-01-01T00:00:00.260", "2020-01-01T00:00:00.250", "2020-01-01T00:00:00.500"),
    ],
)
def test_starts(period, at, start, after):
    found = parse_period(period)
    assert found is not None
    assert found.start_of(micros(at)) == micros(start)
    assert found.start_of(micros(start)) == micros(start)
    assert found.after(micros(start)) == micros(after)
    assert found.start_of(micros(after) - 1) == micros(start)


def test_years_that_python_has_no_dates_for():
    """A time zone can make the year 0 of a date in the year 1, or 10000 of 9999; the calendar goes on."""
    year = parse_period("year")
    assert year is not None
    first = micros("0001-01-01")
    assert year.start_of(first - 1) == first - 366 * DAY_MICROS  # the year 0 is a leap year
    assert year.after(first - 366 * DAY_MICROS) == first
    last = micros("9999-01-01")
    assert year.after(last) == last + 365 * DAY_MICROS
    assert year.start_of(last + 366 * DAY_MICROS) == last + 365 * DAY_MICROS


@pytest.mark.parametrize("text", ["", "fortnight", "1", "m", "-1d", "0s", "1.5h", "Day", "1 d", "999999999999d"])
def test_what_is_no_period(text):
    assert parse_period(text) is None

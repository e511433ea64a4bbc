"""What a timing says of its legs, also when a page has asked a shard again."""

from kvshard.client.results import LegTiming, Timing


def leg(shard: int, total_us: int) -> LegTiming:
    return LegTiming(shard, f"leaf-{shard}", 1, total_us, 0, total_us)


ASKED_AGAIN = Timing((leg(2, 900), leg(0, 700), leg(1, 800), leg(0, 950)), 2_000, 10, straggler_shard=0)


def test_the_first_leg_of_each_shard_is_told_from_what_was_asked_again() -> None:
    assert [(each.shard, each.total_us) for each in ASKED_AGAIN.first_legs] == [(2, 900), (0, 700), (1, 800)]


def test_the_straggler_is_the_slower_of_the_legs_of_its_shard() -> None:
    assert ASKED_AGAIN.straggler == leg(0, 950)


def test_a_straggler_that_is_not_listed_is_none() -> None:
    assert Timing((leg(1, 800),), 1_000, 10, straggler_shard=3, legs_omitted=3).straggler is None

import pytest

from benchmarks.measured import Absent, Block
from benchmarks.turns import WARM_UP_S, Arm, Pace, best, in_turns


class Track:
    """Arms that note when they ran."""

    def __init__(self):
        self.ran = []

    def arm(self, name, rate=100, setting=""):
        async def run(seconds):
            self.ran.append((name, seconds))
            return Block(int(rate * seconds), seconds)

        return Arm(name, run, setting=setting)


async def test_arms_take_turns_there_and_back_after_a_warm_up():
    track = Track()
    compared = await in_turns("gets", "gets/s", [track.arm("a"), track.arm("b")], Pace(turns=3, seconds=1.0))
    assert track.ran[:2] == [("a", WARM_UP_S), ("b", WARM_UP_S)]
    assert [name for name, _ in track.ran[2:]] == ["a", "b", "b", "a", "a", "b"]
    assert {len(arm.blocks) for arm in compared.arms.values()} == {3}
    assert {len(arm.usages) for arm in compared.arms.values()} == {3}


async def test_the_warm_up_is_no_longer_than_a_block():
    track = Track()
    await in_turns("gets", "gets/s", [track.arm("a")], Pace(turns=1, seconds=0.01))
    assert [seconds for _, seconds in track.ran] == [0.01, 0.01]


async def test_an_absent_arm_is_named_and_the_others_are_measured():
    compared = await in_turns("gets", "gets/s", [Track().arm("a"), Absent("redis", "not there")], Pace(1, 0.01))
    assert list(compared.arms) == ["a"]
    assert compared.why_absent("redis") == "redis: not there"


async def test_a_failure_of_an_arm_is_raised():
    async def run(seconds):
        raise RuntimeError("wrong answer")

    with pytest.raises(RuntimeError, match="wrong answer"):
        await in_turns("gets", "gets/s", [Arm("a", run)], Pace(1, 0.01))


async def test_the_best_setting_is_the_one_with_the_highest_rate():
    track = Track()
    settings = [track.arm("redis", rate, f"{size} connections") for size, rate in ((4, 100), (64, 900), (512, 300))]
    found, rates = await best(settings, 1.0)
    assert found.setting == "64 connections"
    assert rates == {"4 connections": 100, "64 connections": 900, "512 connections": 300}
    assert len(track.ran) == 6


async def test_a_setting_counts_with_its_better_try():
    rates = iter([10, 50, 20, 200])

    async def run(seconds):
        return Block(next(rates), 1.0)

    found, tried = await best([Arm("redis", run, setting="a"), Arm("redis", run, setting="b")], 1.0)
    # There and back: a, b, b, a.
    assert tried == {"a": 200, "b": 50}
    assert found.setting == "a"


def test_a_finer_pace_measures_as_long():
    assert Pace(turns=6, seconds=1.0).finer(4) == Pace(turns=24, seconds=0.25)

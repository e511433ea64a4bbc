import json
from random import Random

import pytest

from kvshard.client.results import LegTiming, Timing
from loadtests.reference import Reference

LEAVES = ("leaf-1", "leaf-2")


def timing(*legs):
    rows = tuple(LegTiming(shard, leaf, 1, us, 0, 0, network_us=200) for shard, (leaf, us) in enumerate(legs))
    return Timing(rows, 0, 0, 0)


def made():
    reference = Reference(LEAVES)
    for number in range(9):
        reference.add(timing(("leaf-2", 2_000), ("leaf-1", 1_000 + number)), 5.0 + number, 0.0030)
        reference.add_plain(0.0027)
    reference.slept[0.0026] = 0.0031
    return reference


def test_a_request_is_noted_with_its_legs_leaf_by_leaf_and_what_it_took_beyond_them():
    first = made().requests[0]
    assert (first.at, first.legs) == (5.0, ((1, 0.002), (0, 0.001)))
    assert first.beyond_s == pytest.approx(0.001)
    assert made().network_s == pytest.approx(0.0002)
    assert Reference().network_s == 0.0


def test_a_shard_that_was_asked_again_is_no_further_leg():
    rows = [LegTiming(shard, leaf, 1, us, 0, 0) for shard, leaf, us in ((0, "leaf-1", 900), (1, "leaf-2", 2_000))]
    again = LegTiming(1, "leaf-1", 1, 3_000, 0, 0)
    reference = Reference(LEAVES)
    reference.add(Timing((*rows, again), 0, 0, 0), 5.0, 0.0060)
    reference.add(Timing(tuple(rows), 0, 0, 0), 6.0, 0.0025)
    assert [each.legs for each in reference.requests] == 2 * [((0, 0.0009), (1, 0.002))]
    assert [each.beyond_s for each in reference.requests] == pytest.approx([0.004, 0.0005])
    replay = reference.replay()
    assert [replay.request(Random(1), 2).beyond_s for _ in range(2)] == pytest.approx([0.004, 0.0005])


def test_what_the_timing_itself_takes_is_taken_off():
    reference = made()
    assert reference.timing_s == pytest.approx(0.0003)
    assert reference.replay().request(Random(1), 2).beyond_s == pytest.approx(0.0007)
    reference.plain = [0.004]
    assert reference.timing_s == 0.0, "a timing takes no less than nothing"
    assert Reference().timing_s == 0.0


def test_it_can_be_written_and_read_again():
    again = Reference.from_record(json.loads(json.dumps(made().as_record())))
    assert again.as_record() == made().as_record()
    assert again.slept == {0.0026: 0.0031}
    assert again.timing_s == pytest.approx(made().timing_s)

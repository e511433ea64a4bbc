"""A leaf that is about to stop: its shards are handed over, it gets out of the replicas in sync, and no commit waits for it."""

import pytest
from fakes.replicated_shard import TIMINGS, ReplicatedShard

from leaf.peer_codec import Envelope, decode, encode
from leaf.replication import events as ev
from leaf.replication.machine import Role
from leaf.replication.messages import BeaconAck, Echo


def in_sync(shard: ReplicatedShard) -> str:
    return "".join(each.leaf for each in shard.stored.in_sync)


def may_stop(shard: ReplicatedShard, leaf: str) -> bool:
    return shard.machine(leaf).may_stop(shard.now)


def run_until_free(shard: ReplicatedShard, leaf: str, limit: float = 2 * TIMINGS.failure_timeout) -> float:
    """Seconds until the leaf may stop."""
    began = shard.now
    while not may_stop(shard, leaf):
        shard.run(TIMINGS.tick)
        assert shard.now - began <= limit, "it never came free"
    return shard.now - began


def test_a_primary_hands_over_gets_out_and_writes_go_on_all_the_time() -> None:
    shard = ReplicatedShard()
    shard.step("a", ev.Leave())
    token, refused = 0, 0
    began = shard.now
    while not may_stop(shard, "a"):
        token += 1
        shard.write(
            shard.primary if any(n.machine.role is Role.PRIMARY for n in shard.nodes.values()) else "a", token, "k", "v"
        )
        shard.run(TIMINGS.tick)
        refused += not isinstance(shard.answers.get(token), tuple)
        assert shard.now - began <= 2 * TIMINGS.failure_timeout
    assert (shard.stored.primary, in_sync(shard)) == ("b", "bc")
    assert refused <= 2, "only while it is handed over"
    shard.nodes["a"].is_up = False
    shard.write("b", 900, "k", "last")
    shard.run(TIMINGS.tick)
    assert shard.answers[900][1] == "did last", "nobody waits for the one that is gone"


def test_a_secondary_gets_out_when_its_read_lease_is_over() -> None:
    shard = ReplicatedShard()
    shard.step("c", ev.Leave())
    assert not may_stop(shard, "c")
    took = run_until_free(shard, "c")
    assert took >= TIMINGS.evict_after
    assert (shard.stored.primary, in_sync(shard)) == ("a", "ab")
    assert shard.machine("c").role is Role.REMOVED
    shard.run(4 * TIMINGS.failure_timeout)
    assert in_sync(shard) == "ab", "it does not ask to join again"
    shard.nodes["c"].is_up = False
    shard.restart("c")
    shard.run(2 * TIMINGS.failure_timeout)
    assert sorted(in_sync(shard)) == ["a", "b", "c"], "after its restart it does"


def test_who_was_handed_the_shard_does_not_hand_it_back_to_one_that_stops() -> None:
    shard = ReplicatedShard(desired="abc")
    shard.step("a", ev.Leave())
    primaries = set()
    for _ in range(40):
        shard.run(TIMINGS.tick)
        primaries.add(shard.stored.primary)
    assert shard.stored.primary == "b"
    assert primaries == {"b"}, "never back to the one that stops"
    shard.nodes["a"].is_up = False
    shard.restart("a")
    shard.run(10 * TIMINGS.failure_timeout)
    assert (shard.stored.primary, len(in_sync(shard))) == ("a", 3), "it is wanted there, and back"


@pytest.mark.parametrize("leaver", ["a", "b"])
def test_with_too_few_in_sync_nobody_is_put_out(leaver: str) -> None:
    shard = ReplicatedShard("ab")
    shard.step(leaver, ev.Leave())
    run_until_free(shard, leaver)
    shard.run(TIMINGS.failure_timeout)
    assert sorted(in_sync(shard)) == ["a", "b"]
    assert shard.stored.primary == ("b" if leaver == "a" else "a")


def test_when_all_stop_nobody_waits_long() -> None:
    shard = ReplicatedShard()
    for leaf in "abc":
        shard.step(leaf, ev.Leave())
    for leaf in "abc":
        run_until_free(shard, leaf)
    assert len(in_sync(shard)) >= shard.min_in_sync


def test_one_alone_may_stop_at_once() -> None:
    shard = ReplicatedShard("a", min_in_sync=1)
    shard.step("a", ev.Leave())
    assert may_stop(shard, "a")
    shard.write("a", 1, "k", "v")
    shard.run(TIMINGS.tick)
    assert isinstance(shard.answers[1], tuple)


def test_others_that_are_down_are_no_heirs() -> None:
    shard = ReplicatedShard()
    shard.nodes["b"].is_up = shard.nodes["c"].is_up = False
    shard.is_coordinator_up = False
    shard.run(TIMINGS.evict_after + TIMINGS.tick)
    shard.step("a", ev.Leave())
    assert may_stop(shard, "a")


def test_who_stops_does_not_take_over() -> None:
    shard = ReplicatedShard()
    shard.step("b", ev.Leave())
    shard.nodes["a"].is_up = False
    shard.run(4 * TIMINGS.failure_timeout)
    assert shard.stored.primary == "c"


def test_the_word_travels_and_an_older_leaf_says_nothing_of_it() -> None:
    shard = ReplicatedShard()
    a, b = shard.machine("a").me, shard.machine("b").me
    for is_stopping, is_full in ((False, False), (True, False), (False, True)):
        ack = BeaconAck(3, 1.5, Echo(7, 2.5), 9, is_stopping, is_full=is_full)
        payload = encode([Envelope(0, b, a, ack)], lambda entry: b"")
        assert [each.message for each in decode(payload, "b", "a", lambda row: None)] == [ack]  # type: ignore[arg-type, return-value]
    import msgspec

    old = msgspec.msgpack.encode([[0, "b1", "a1", 2, 3, 1.5, [7, 2.5], 9]])
    (found,) = decode(old, "b", "a", lambda row: None)  # type: ignore[arg-type, return-value]
    assert found.message == BeaconAck(3, 1.5, Echo(7, 2.5), 9, False)

"""`kvshard leaf drain|remove`, `shard move` and what `status` shows of them, in process against a fake router."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from fakes.router_service import FakeRouter

from kvshard.cli import main, waiting
from kvshard.clustermap import Replica, WantedSplit
from kvshard.errors import ErrorDetails, FailedPrecondition, LeafNotFound, ShardNotFound, Unavailable
from kvshard.model import CatchUpRecord, SplitRecord
from kvshard.splitting import divided

Cli = Callable[..., int]


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    with FakeRouter() as fake:
        yield fake


@pytest.fixture
def cli(router: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setattr(waiting, "LOOK_INTERVAL_S", 0.001)

    def call(*argv: str) -> int:
        return main([*argv, "--router", router.address])

    return call


def empty(router: FakeRouter, leaf: str, other: str) -> None:
    """The balancer and the primaries have moved everything."""
    for number, shard in router.shards.items():
        if leaf in shard.desired:
            router.shards[number] = replace(shard, desired=(other,), primary=other, in_sync=(Replica(other, "n"),))


def test_drain_and_undo(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("leaf", "drain", "leaf-1") == 0
    assert capsys.readouterr().out == "leaf leaf-1 is being drained; `kvshard status` shows how far\n"
    assert router.leaves["leaf-1"].is_draining
    assert cli("status") == 0
    assert "up, draining" in capsys.readouterr().out
    assert cli("leaf", "drain", "leaf-1", "--undo") == 0
    assert capsys.readouterr().out == "leaf leaf-1 takes part again\n"
    assert not router.leaves["leaf-1"].is_draining
    assert cli("leaf", "drain", "leaf-1", "--undo", "--wait") == 2
    assert cli("leaf", "drain", "leaf-1", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"leaf": "leaf-1", "is_draining": True, "is_empty": False}


def test_drain_waits_until_nothing_is_left(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    router.on_status = [lambda: None, lambda: empty(router, "leaf-1", "leaf-2")]
    assert cli("leaf", "drain", "leaf-1", "--wait") == 0
    assert "leaf-1 is empty" in capsys.readouterr().out
    assert len(router.requests["GetStatus"]) == 2
    assert cli("leaf", "drain", "leaf-2", "--wait", "--max-wait", "0.01") == 3
    assert "waited 0.01 s for leaf leaf-2 to be empty: 2 shards left on leaf leaf-2" in capsys.readouterr().err


def test_remove(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("leaf", "remove", "leaf-1") == 0
    assert capsys.readouterr().out == "leaf leaf-1 is removed\n"
    assert cli("leaf", "remove", "leaf-1", "--force") == 0
    assert "not waited for any more" in capsys.readouterr().out
    assert [request.force for request in router.requests["RemoveLeaf"]] == [False, True]
    assert cli("leaf", "remove", "leaf-1", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"leaf": "leaf-1", "is_done": True}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LeafNotFound("there is no leaf 'x'; did you mean leaf-1?", ErrorDetails(field="leaf")), 1),
        (ShardNotFound("there is no shard 9"), 1),
        (FailedPrecondition("leaf leaf-1 still holds 1 shard (0)", ErrorDetails(shards=(0,))), 1),
        (Unavailable("the coordinator does not answer", ErrorDetails(maybe_applied=True)), 3),
    ],
)
def test_refusals_and_their_exit_codes(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str], error, code) -> None:
    for method, argv in (
        ("DrainLeaf", ("leaf", "drain", "leaf-1")),
        ("RemoveLeaf", ("leaf", "remove", "leaf-1")),
        ("MoveShard", ("shard", "move", "0", "--primary", "leaf-1")),
    ):
        router.fail(method, error, times=1_000)
        assert cli(*argv, "--timeout", "0.2") == code
        assert error.message in capsys.readouterr().err


def test_move(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("shard", "move", "0", "--from", "leaf-1", "--to", "leaf-2") == 0
    assert capsys.readouterr().out == "shard 0 is wanted on leaf-2; the first orders the writes\n"
    assert cli("shard", "move", "1", "--primary", "leaf-2", "--wait", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"shard": 1, "desired": ["leaf-2"], "is_there": True}
    sent = router.requests["MoveShard"]
    assert (sent[0].replica.from_leaf, sent[0].replica.to_leaf) == ("leaf-1", "leaf-2")
    assert (sent[1].shard, sent[1].primary) == (1, "leaf-2")


@pytest.mark.parametrize(
    "flags",
    [(), ("--from", "a"), ("--to", "a"), ("--from", "a", "--to", "b", "--primary", "c"), ("--from", "a", "--primary", "c")],
)
def test_a_move_must_say_what(cli: Cli, flags: tuple[str, ...]) -> None:
    assert cli("shard", "move", "0", *flags) == 2
    assert cli("shard", "move", "zero", "--primary", "a") == 2


def test_move_waits_until_the_shard_is_there(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    router.on_status = [lambda: None, lambda: None, lambda: empty(router, "leaf-2", "leaf-2")]
    assert cli("shard", "move", "0", "--from", "leaf-1", "--to", "leaf-2", "--wait") == 0
    assert "shard 0 is on leaf-2" in capsys.readouterr().out
    assert len(router.requests["GetStatus"]) == 3


def test_status_shows_what_is_on_its_way(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    shard = router.shards[0]
    router.shards[0] = replace(shard, desired=("leaf-1", "leaf-2"), learners=(Replica("leaf-2", "c"),), epoch=4)
    router.catching_up[0] = [CatchUpRecord("leaf-2", 40, 45_000_000, 100_000_000, 5_000_000.0)]
    assert cli("status") == 0
    out = capsys.readouterr().out
    assert "leaf-2 has 45%, 45.0 MB of 100.0 MB, 5.0 MB/s, 11 s left" in out
    assert "1/2" in out
    assert "1 shards under change, 2 with fewer than 2 replicas in sync" in out
    assert cli("status", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["replicas"] == 2
    assert [each["is_changing"] for each in found["shards"]] == [True, False]
    (learner,) = found["shards"][0]["catching_up"]
    assert (learner["leaf"], learner["bytes_sent"], learner["eta_s"]) == ("leaf-2", 45_000_000, 11.0)
    router.catching_up[0] = [CatchUpRecord("leaf-2", 40)]
    assert cli("status") == 0
    assert "leaf-2 lacks 40 entries" in capsys.readouterr().out


def done(router: FakeRouter) -> None:
    """Every split that is wanted is done."""
    for shard in list(router.shards.values()):
        if shard.split is not None:
            parent, child = divided(shard)
            router.shards |= {parent.id: parent, child.id: child}


def test_split_one_shard(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("shard", "split", "1") == 0
    assert capsys.readouterr().out == "shard 1 is being split into itself and 2\n`kvshard status` shows how far\n"
    assert list(router.requests["SplitShards"][0].shards) == [1]
    assert cli("shard", "list") == 0
    assert "into 2 at 0xc000" in capsys.readouterr().out


def test_split_all_waits_for_the_new_shards(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    router.on_status = [lambda: None, lambda: done(router)]
    assert cli("shard", "split", "--all", "--wait", "--json") == 0
    found = json.loads(capsys.readouterr().out)["splits"]
    assert found == [{"shard": 0, "child": 2, "is_done": True}, {"shard": 1, "child": 3, "is_done": True}]
    assert router.requests["SplitShards"][0].all
    assert len(router.requests["GetStatus"]) == 2
    assert cli("shard", "split", "0", "--wait", "--max-wait", "0.01") == 3
    assert "1 of 1 shards to be split; shard 0: split into 4: not begun" in capsys.readouterr().err


def test_a_split_must_say_what_and_refusals_have_codes(
    cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("shard", "split") == 2
    assert cli("shard", "split", "1", "--all") == 2
    for error, code in ((ShardNotFound("there is no shard 1"), 1), (FailedPrecondition("a single token slot"), 1)):
        router.fail("SplitShards", error)
        assert cli("shard", "split", "1") == code
        assert error.message in capsys.readouterr().err


def test_status_shows_how_far_a_split_is(cli: Cli, router: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
    router.shards[0] = replace(router.shards[0], split=WantedSplit(2, 100))
    for record, text in (
        (None, "split into 2: not begun"),
        (SplitRecord(2, 100, 30, 120, False, False), "split into 2: 25% looked through"),
        (SplitRecord(2, 100, 120, 120, True, False), "split into 2: waiting for the other replicas"),
        (SplitRecord(2, 100, 120, 120, True, True), "split into 2: cleaning up"),
    ):
        router.splitting = {0: record} if record is not None else {}
        assert cli("status") == 0
        assert text in capsys.readouterr().out
    assert cli("status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["shards"][0]["splitting"]["is_done"]

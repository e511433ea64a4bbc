import pytest

from kvshard.errors import InvalidArgument
from kvshard.tail.hedging import (
    Auto,
    FixedDelay,
    HedgePolicy,
    HedgeSettings,
    Longer,
    Off,
    Quantile,
    ReplicaChoice,
    Shorter,
    parse_policy,
    parse_replica_choice,
    policy_delay,
)
from kvshard.tail.latency import LatencyPool


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Auto()),
        ("auto", Auto()),
        ("AUTO", Auto()),
        ("off", Off()),
        ("10ms", FixedDelay(0.01)),
        ("250us", FixedDelay(0.00025)),
        ("0.5s", FixedDelay(0.5)),
        ("0ms", FixedDelay(0.0)),
        ("p99", Quantile(0.99)),
        ("p99.9", Quantile(0.999)),
        ("min(p99,50ms)", Shorter(Quantile(0.99), FixedDelay(0.05))),
        ("max( 1ms , p50 )", Longer(FixedDelay(0.001), Quantile(0.5))),
    ],
)
def test_policies(text: str, policy: HedgePolicy) -> None:
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    "text",
    [
        "on",
        "10",
        "10m",
        "-1ms",
        "p",
        "p0",
        "p100",
        "p999",
        "61s",
        "min(p99)",
        "min(auto,10ms)",
        "min(1ms,2ms,3ms)",
        "max(min(1ms,p9),p5)",
        "1e3ms",
    ],
)
def test_bad_policies_name_the_field(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_policy(text)
    assert caught.value.details.field == "options.hedge"


def test_a_long_bad_policy_is_not_repeated_whole() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_policy("x" * 100_000)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("", ReplicaChoice.ADAPTIVE),
        ("adaptive", ReplicaChoice.ADAPTIVE),
        ("Random", ReplicaChoice.RANDOM),
        ("primary", ReplicaChoice.PRIMARY),
    ],
)
def test_replica_choices(text: str, choice: ReplicaChoice) -> None:
    assert parse_replica_choice(text) is choice


def test_a_bad_replica_choice_names_the_field() -> None:
    with pytest.raises(InvalidArgument, match='"adaptive", "random", "primary"') as caught:
        parse_replica_choice("nearest")
    assert caught.value.details.field == "options.replica_choice"


@pytest.mark.parametrize(
    ("text", "delay"),
    [
        ("auto", 0.1),
        ("p99", 0.1),
        ("off", None),
        ("0ms", 0.0),
        ("10ms", 0.01),
        ("min(p99,50ms)", 0.05),
        ("max(p99,50ms)", 0.1),
        ("max(200ms,1s)", 1.0),
    ],
)
def test_the_delay_while_nothing_is_measured(text: str, delay: float | None) -> None:
    assert policy_delay(parse_policy(text), LatencyPool("Get"), 0.05, 1.0) == delay


def test_the_delay_follows_what_is_measured() -> None:
    pool = LatencyPool("Get")
    for number in range(1_000):
        pool.record(0.002 if number % 100 else 0.05, now=1.0)
    assert policy_delay(parse_policy("auto"), pool, 0.05, 2.0) == pytest.approx(0.006, rel=0.02)  # three medians
    assert policy_delay(parse_policy("p99.5"), pool, 0.05, 2.0) == pytest.approx(0.05, rel=0.02)
    assert policy_delay(parse_policy("min(p99.5,20ms)"), pool, 0.05, 2.0) == 0.02
    assert policy_delay(parse_policy("max(p50,20ms)"), pool, 0.05, 2.0) == 0.02
    assert policy_delay(parse_policy("off"), pool, 0.05, 2.0) is None


def test_settings_say_how_far_a_budget_goes() -> None:
    assert (HedgeSettings().budget_first, HedgeSettings().budget_most) == (0.05, 0.1)
    assert (HedgeSettings(budget=0.02).budget_first, HedgeSettings(budget=0.02).budget_most) == (0.02, 0.02)

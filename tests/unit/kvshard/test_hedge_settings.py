import pytest

from kvshard.clustermap import DEFAULT_COLLECTION, Collection, Hedging
from kvshard.errors import InvalidArgument
from kvshard.hedge_settings import (
    budget_text,
    check_attempts,
    check_hedging,
    check_policy,
    hedging_fields,
    hedging_of,
    hedging_text,
    merged,
    parse_budget,
    router_settings,
    settings_in,
)
from kvshard.tail.hedging import Auto, FixedDelay, HedgeSettings, Off, Quantile


@pytest.mark.parametrize(
    ("text", "budget"),
    [("auto", None), (" AUTO ", None), ("5%", 0.05), ("2.5 %", 0.025), ("0.05", 0.05), ("0", 0.0), ("50%", 0.5), ("0.5", 0.5)],
)
def test_budgets(text: str, budget: float | None) -> None:
    assert parse_budget(text) == budget
    assert parse_budget(budget_text(budget)) == budget


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a hedging budget"),
        ("five", "not a hedging budget"),
        ("-1%", "not a hedging budget"),
        ("nan", "not a hedging budget"),
        ("5%%", "not a hedging budget"),
        ("50.1%", "0 to 0.5"),
        ("5", r"not 5 \(500.000%\)"),
    ],
)
def test_what_is_no_budget(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as caught:
        parse_budget(text)
    assert caught.value.details.field == "hedge-budget"


@pytest.mark.parametrize("attempts", [0, 4, -1])
def test_attempts_are_bounded(attempts: int) -> None:
    with pytest.raises(InvalidArgument, match="1 to 3 attempts") as caught:
        check_attempts(attempts)
    assert (caught.value.details.field, caught.value.details.limit) == ("hedge-attempts", 3)


def test_a_policy_is_kept_in_one_form() -> None:
    assert check_policy(" Min( P99 , 50ms ) ") == "min(p99,50ms)"
    assert check_policy("") == ""
    with pytest.raises(InvalidArgument, match="not a hedging policy") as caught:
        check_policy("sometimes", "hedging.policy")
    assert caught.value.details.field == "hedging.policy"
    with pytest.raises(InvalidArgument, match="at most 64 characters"):
        check_policy("p" + "9" * 64)


@pytest.mark.parametrize(
    ("hedging", "field"),
    [
        (Hedging("soon"), "hedging.policy"),
        (Hedging("", 0.6), "hedging.budget"),
        (Hedging("", float("nan")), "hedging.budget"),
        (Hedging("", None, 4), "hedging.max_attempts"),
    ],
)
def test_wrong_settings_name_their_field(hedging: Hedging, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_hedging(hedging)
    assert caught.value.details.field == field


def test_settings_are_checked_and_put_in_one_form() -> None:
    assert check_hedging(Hedging()) == Hedging()
    assert check_hedging(Hedging("OFF", 0.0, 3)) == Hedging("off", 0.0, 3)


def test_a_change_touches_only_what_it_names() -> None:
    held, wanted = Hedging("off", 0.1, 2), Hedging("p99", None, 0)
    assert merged(held, wanted, ["policy"]) == Hedging("p99", 0.1, 2)
    assert merged(held, wanted, ["budget", "max_attempts"]) == Hedging("off", None, 0)
    assert merged(held, wanted, []) == held


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([], ["policy", "budget", "max_attempts"]),
        (["hedging"], ["policy", "budget", "max_attempts"]),
        (["hedging.budget", "hedging.policy"], ["budget", "policy"]),
    ],
)
def test_update_masks(paths: list[str], names: list[str]) -> None:
    assert hedging_fields(paths) == names


@pytest.mark.parametrize("path", ["", "schema", "hedging.", "hedging.schema", "hedging.policy.x", "policy"])
def test_update_masks_that_mean_nothing(path: str) -> None:
    with pytest.raises(InvalidArgument, match=r"hedging, hedging\.policy") as caught:
        hedging_fields([path])
    assert caught.value.details.field == "update_mask"


def test_settings_for_people() -> None:
    assert hedging_text(Hedging()) == ""
    assert hedging_text(Hedging("p99", 0.025, 2)) == "p99, budget 2.5%, at most 2 attempts"


def test_what_a_collection_does_not_say_is_as_the_router_has_it() -> None:
    router = HedgeSettings(Off(), 0.02, 2)
    assert settings_in(DEFAULT_COLLECTION, router) is None
    assert settings_in(Collection("c", 2, {}, Hedging()), router) is None
    assert settings_in(Collection("c", 2, {}, Hedging("off", 0.02, 2)), router) is None, "the same is the same"
    assert settings_in(Collection("c", 2, {}, Hedging("p99")), router) == HedgeSettings(Quantile(0.99), 0.02, 2)
    assert settings_in(Collection("c", 2, {}, Hedging("", 0.0)), router) == HedgeSettings(Off(), 0.0, 2)
    assert settings_in(Collection("c", 2, {}, Hedging("auto", None, 3)), router) == HedgeSettings(Auto(), 0.02, 3)


def test_settings_of_a_newer_version_are_followed_as_far_as_they_are_understood() -> None:
    router = HedgeSettings(FixedDelay(0.01), None, 2)
    newer = Collection("c", 2, {}, Hedging("by-moon", 0.9, 7))
    assert settings_in(newer, router) == HedgeSettings(FixedDelay(0.01), 0.5, 3)
    assert settings_in(Collection("c", 2, {}, Hedging("", float("nan"), -1)), router) == HedgeSettings(FixedDelay(0.01), 0.0, 2)


def test_the_flags_of_a_router() -> None:
    assert router_settings() == HedgeSettings()
    assert router_settings("10ms", "3%", 2) == HedgeSettings(FixedDelay(0.01), 0.03, 2)


@pytest.mark.parametrize(
    ("flags", "field"),
    [(("soon", "auto", 3), "hedge"), (("auto", "9", 3), "hedge-budget"), (("auto", "auto", 0), "hedge-attempts")],
)
def test_wrong_flags_are_named(flags: tuple[str, str, int], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        router_settings(*flags)
    assert caught.value.details.field == field


def test_what_a_program_says_and_how_it_is_taken_back() -> None:
    assert hedging_of(None, None, None) == (Hedging(), [])
    assert hedging_of("P99", "2%", 2) == (Hedging("p99", 0.02, 2), ["policy", "budget", "max_attempts"])
    assert hedging_of(None, 0.0, None) == (Hedging("", 0.0), ["budget"])
    assert hedging_of(" Default ", "default", 0) == (Hedging(), ["policy", "budget", "max_attempts"])
    for wrong in ((None, "auto", None), (None, 0.6, None), (None, None, 4), ("soon", None, None)):
        with pytest.raises(InvalidArgument):
            hedging_of(*wrong)

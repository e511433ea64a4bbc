"""How hedging is configured: the budget's syntax, the bounds, and the settings of a collection as they are checked and shown.

    budget = "auto" | number "%" | number       5%, 2.5%, 0.05: that part of the first attempts; auto: tuned by itself

Pure: imports only the standard library and other pure files.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import fields, replace
from functools import lru_cache

from kvshard.clustermap import HEDGED_AS_THE_ROUTER_SAYS, Collection, Hedging
from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.tail.hedging import ATTEMPTS_MAX, BUDGET_MAX, HedgeSettings, parse_policy

POLICY_MAX_CHARS = 64
"""The longest sensible policy is half of it; it stands in every copy of the map."""

SETTINGS_MAX = 1_024
"""Settings of collections that are kept parsed: there may be as many different ones as there are collections."""

AUTO = "auto"
DEFAULT = "default"
"""What a person writes to take a collection's setting back: as the router has it."""

FIELDS = tuple(each.name for each in fields(Hedging))
"""What may be changed of a collection's settings."""

_BUDGET = re.compile(r"(\d+(?:\.\d+)?)(%?)")


def router_settings(policy: str = AUTO, budget: str = AUTO, attempts: int = ATTEMPTS_MAX) -> HedgeSettings:
    """What a router's flags --hedge, --hedge-budget and --hedge-attempts say. Raises InvalidArgument that names the flag."""
    checked = check_policy(policy)
    return HedgeSettings(parse_policy(checked), parse_budget(budget), check_attempts(attempts))


def settings_in(collection: Collection, router: HedgeSettings) -> HedgeSettings | None:
    """How reads of a collection are hedged that do not say it, at a router with these settings; None: as the router says."""
    hedging = collection.hedging
    return None if hedging is HEDGED_AS_THE_ROUTER_SAYS else _settings_of(hedging, router)


@lru_cache(maxsize=SETTINGS_MAX)
def _settings_of(hedging: Hedging, router: HedgeSettings) -> HedgeSettings | None:
    """What is not understood, since a newer version wrote it, is as the router has it, or as near to it as this one can."""
    try:
        policy = parse_policy(hedging.policy) if hedging.policy else router.policy
    except InvalidArgument:
        policy = router.policy
    budget = router.budget if hedging.budget is None else min(max(0.0, hedging.budget), BUDGET_MAX)
    attempts = min(hedging.max_attempts, ATTEMPTS_MAX) if hedging.max_attempts > 0 else router.max_attempts
    settings = HedgeSettings(policy, budget, attempts)
    return None if settings == router else settings


def parse_budget(text: str, field: str = "hedge-budget") -> float | None:
    """The budget in a text, as a part of the first attempts; None for "auto". Raises InvalidArgument that names the field."""
    compact = "".join(text.lower().split())
    if compact == AUTO:
        return None
    match = _BUDGET.fullmatch(compact)
    if match is None:
        raise _bad(f'not a hedging budget: {text[:100]!r}; expected "auto", or a part of the requests such as "5%"', field)
    return check_budget(float(match[1]) / (100 if match[2] else 1), field)


def check_budget(budget: float, field: str = "hedge-budget") -> float:
    """The budget, if there may be such a one. Raises InvalidArgument that names the field."""
    if not 0.0 <= budget <= BUDGET_MAX:  # Also false for NaN.
        shown = f"{budget:.10g}" if not math.isfinite(budget) else f"{budget:.10g} ({budget:.3%})"
        raise _bad(f"a hedging budget is 0 to {BUDGET_MAX} (50%) of the requests, not {shown}", field)
    return budget


def check_attempts(attempts: int, field: str = "hedge-attempts") -> int:
    """The number of attempts of a leg, if there may be so many. Raises InvalidArgument that names the field."""
    if not 1 <= attempts <= ATTEMPTS_MAX:
        message = f"a leg has 1 to {ATTEMPTS_MAX} attempts, the first one included, not {attempts}"
        raise InvalidArgument(message, ErrorDetails(field=field, limit=ATTEMPTS_MAX))
    return attempts


def check_policy(text: str, field: str = "hedge") -> str:
    """The policy in its canonical text, if it is one. Raises InvalidArgument that names the field."""
    if len(text) > POLICY_MAX_CHARS:
        message = f"{field} has at most {POLICY_MAX_CHARS} characters, not {len(text)}"
        raise InvalidArgument(message, ErrorDetails(field=field, limit=POLICY_MAX_CHARS))
    try:
        parse_policy(text)
    except InvalidArgument as error:
        raise _bad(error.message, field) from None
    return "".join(text.lower().split())


def check_hedging(hedging: Hedging, field: str = "hedging") -> Hedging:
    """The settings of a collection in canonical form. Raises InvalidArgument that names what is wrong with them."""
    policy = check_policy(hedging.policy, f"{field}.policy")
    if hedging.budget is not None:
        check_budget(hedging.budget, f"{field}.budget")
    if hedging.max_attempts:
        check_attempts(hedging.max_attempts, f"{field}.max_attempts")
    return replace(hedging, policy=policy)


def hedging_of(policy: str | None, budget: float | str | None, attempts: int | None) -> tuple[Hedging, list[str]]:
    """What a person or a program says of a collection's hedging, checked, and the fields it speaks of; None: says nothing.

    "default" (of the attempts: 0) takes a setting back. Raises InvalidArgument that names the argument.
    """
    hedging, names = Hedging(), []
    if policy is not None:
        hedging = replace(hedging, policy="" if _is_default(policy) else check_policy(policy))
        names.append("policy")
    if budget is not None:
        hedging = replace(hedging, budget=_budget_of(budget))
        names.append("budget")
    if attempts is not None:
        hedging = replace(hedging, max_attempts=attempts and check_attempts(attempts))
        names.append("max_attempts")
    return hedging, names


def _is_default(text: str) -> bool:
    return text.strip().lower() == DEFAULT


def _budget_of(given: float | str) -> float | None:
    if not isinstance(given, str):
        return check_budget(float(given))
    if _is_default(given):
        return None
    budget = parse_budget(given)
    if budget is None:
        raise _bad('a collection cannot tune its own budget: give a part such as "5%", or "default"', "hedge-budget")
    return budget


def hedging_fields(paths: Iterable[str]) -> list[str]:
    """The fields of Hedging that an update mask means, all of them where it is empty. Raises InvalidArgument for others."""
    names: list[str] = []
    for path in paths:
        parent, _, name = path.partition(".")
        if parent != "hedging" or (path != parent and name not in FIELDS):
            known = ", ".join(["hedging", *(f"hedging.{each}" for each in FIELDS), "synonyms"])
            raise _bad(f"there is no {path[:100]!r} to change; there are {known}", "update_mask")
        names += [name] if "." in path else FIELDS
    return names or list(FIELDS)


def merged(held: Hedging, wanted: Hedging, names: Iterable[str]) -> Hedging:
    """What is held, with the named fields as they are wanted."""
    changes: dict[str, str | float | None] = {name: getattr(wanted, name) for name in names}
    return replace(held, **changes)  # type: ignore[arg-type]


def budget_text(budget: float | None) -> str:
    """A budget as parse_budget reads it."""
    return AUTO if budget is None else f"{budget * 100:.6g}%"


def hedging_json(hedging: Hedging) -> dict[str, str | float | int | None]:
    """The settings of a collection for programs; null where it is as the router has it."""
    return {"policy": hedging.policy or None, "budget": hedging.budget, "max_attempts": hedging.max_attempts or None}


def hedging_text(hedging: Hedging) -> str:
    """The settings of a collection for people; empty where all is as the router has it."""
    parts = [hedging.policy] if hedging.policy else []
    if hedging.budget is not None:
        parts.append(f"budget {budget_text(hedging.budget)}")
    if hedging.max_attempts:
        parts.append(f"at most {hedging.max_attempts} attempts")
    return ", ".join(parts)


def _bad(message: str, field: str) -> InvalidArgument:
    return InvalidArgument(message, ErrorDetails(field=field))

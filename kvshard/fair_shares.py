"""How many replicas each leaf is to hold: its fair share by weight, under the limits that zones and the number of shards set.

A leaf cannot hold more than one replica of a shard, and a zone no more than one while zones suffice, so the share by weight
alone is not always possible: what a small zone cannot take, the others take in proportion. Exact arithmetic throughout
(fractions), so that no rounding of a machine decides a placement.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the most that something may hold."""

    least: int
    most: int


def divide(total: Fraction, weights: Mapping[str, Fraction], bounds: Mapping[str, Bounds]) -> dict[str, Fraction]:
    """Divide a total in proportion to the weights, each part within its bounds; the parts sum up to the total.

    Requires positive weights and bounds between which the total can be divided. Each round fixes at least one part at a bound:
    those cut at the top if the cuts outweigh the additions at the bottom, else those raised (the rule of CSS flexible boxes,
    which ends at the one division where a single level, clamped to the bounds, gives every part).
    """
    assert sum(each.least for each in bounds.values()) <= total <= sum(each.most for each in bounds.values())
    fixed: dict[str, Fraction] = {}
    while len(fixed) < len(weights):
        free = [name for name in sorted(weights) if name not in fixed]
        level = (total - sum(fixed.values())) / sum(weights[name] for name in free)
        wanted = {name: level * weights[name] for name in free}
        raised = {name: Fraction(bounds[name].least) for name in free if wanted[name] < bounds[name].least}
        cut = {name: Fraction(bounds[name].most) for name in free if wanted[name] > bounds[name].most}
        surplus = sum(wanted[name] - cut[name] for name in cut) - sum(raised[name] - wanted[name] for name in raised)
        if not raised and not cut:
            fixed |= wanted
        elif surplus > 0:
            fixed |= cut
        elif surplus < 0:
            fixed |= raised
        else:
            fixed |= {**wanted, **raised, **cut}
    assert sum(fixed.values()) == total
    return fixed


def round_parts(parts: Mapping[str, Fraction], total: int, held: Mapping[str, int]) -> dict[str, int]:
    """Round every part to the whole number below or above it, so that they sum up to the total.

    Parts are rounded up first where more is held now than the number below (that moves nothing), then where the fraction is
    largest.
    """
    rounded = {name: floor(part) for name, part in parts.items()}
    missing = total - sum(rounded.values())
    candidates = [name for name, part in parts.items() if part != rounded[name]]
    candidates.sort(key=lambda name: (-min(1, max(0, held.get(name, 0) - rounded[name])), rounded[name] - parts[name], name))
    assert 0 <= missing <= len(candidates)
    for name in candidates[:missing]:
        rounded[name] += 1
    assert all(floor(part) <= rounded[name] <= ceil(part) for name, part in parts.items())
    return rounded


@dataclass(frozen=True, slots=True)
class Shares:
    """fair: exact fair share of each leaf, in replicas. quota: whole replicas it is to hold, its fair share rounded."""

    fair: Mapping[str, Fraction]
    quota: Mapping[str, int]


def fair_shares(
    weights: Mapping[str, float], zone_of: Mapping[str, str], shards: int, replicas: int, held: Mapping[str, int]
) -> Shares:
    """The share of each leaf, for so many shards with so many replicas each. held: replicas that each leaf has now.

    Requires at least as many leaves, all of positive weight, as replicas. The quotas can always be met: laid out zone by zone
    and leaf by leaf, and dealt to the shards in turn, no leaf gets a shard twice, no zone does while zones suffice, and every
    zone gets every shard when they do not.
    """
    leaves_in: dict[str, list[str]] = {}
    for leaf in sorted(weights):
        leaves_in.setdefault(zone_of[leaf], []).append(leaf)
    exact = {leaf: Fraction(weight) for leaf, weight in weights.items()}
    # Replicas of a shard beyond one a zone, which any zone may take.
    spare = max(0, replicas - len(leaves_in))
    least = shards if len(leaves_in) <= replicas else 0
    zone_bounds = {zone: Bounds(least, shards * min(len(members), 1 + spare)) for zone, members in leaves_in.items()}
    zone_weights = {zone: sum((exact[leaf] for leaf in members), Fraction(0)) for zone, members in leaves_in.items()}
    zone_fair = divide(Fraction(shards * replicas), zone_weights, zone_bounds)
    zone_held = {zone: sum(held.get(leaf, 0) for leaf in members) for zone, members in leaves_in.items()}
    zone_quota = round_parts(zone_fair, shards * replicas, zone_held)
    fair: dict[str, Fraction] = {}
    quota: dict[str, int] = {}
    for zone, members in leaves_in.items():
        parts = divide(zone_fair[zone], {leaf: exact[leaf] for leaf in members}, {leaf: Bounds(0, shards) for leaf in members})
        fair |= parts
        quota |= round_parts(parts, zone_quota[zone], held)
    return Shares(fair, quota)

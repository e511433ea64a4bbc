"""Placement: on which leaves the replicas of each shard are to live, as a problem, a solution and `solve`.

Promises of a solution, checked before it is returned:
- each shard has the wanted number of replicas, on different leaves; in different zones, or in all zones when there are fewer;
- a leaf holds its fair share (`fair_shares.py`) rounded up or down, so never over LOAD_BOUND where whole numbers allow;
- each leaf is primary of its part of the replicas it holds, rounded up or down;
- no solution with these quotas moves fewer of the replicas that the current placement has on leaves that may keep them;
- the same problem has the same solution, whatever the order of its leaves and shards.

How: keep what may stay; place what is missing where the ring prefers it; then move single replicas, and where no single move
helps, chains of moves along shortest augmenting paths. That is the successive-shortest-path method for minimum-cost flow
(shard -> zone -> leaf, cost 1 for each replica that is new), so the number of moves is minimal. It starts without negative
cycles, since everything that is kept costs nothing, and single moves of cost 1 are shortest paths as long as there are any.

Pure: imports only the standard library and other pure files.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor

from kvshard.errors import ErrorDetails, Internal, InvalidArgument
from kvshard.fair_shares import Shares, fair_shares
from kvshard.ring import Ring, RingLeaf

LOAD_BOUND = Fraction(11, 10)
"""No leaf holds more than this times its fair share, where whole numbers allow: the fullest leaf sets the pace of a search."""


@dataclass(frozen=True, slots=True)
class PlacementProblem:
    """What is to be placed. current: the placement so far, the primary first; leaves that are not in `leaves` lose theirs.

    Leaves of weight 0 get no replicas. seed: of the ring.
    """

    leaves: tuple[RingLeaf, ...]
    shards: tuple[int, ...]
    replicas: int
    seed: int = 0
    current: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlacementSolution:
    """replicas: the leaves of each shard, the primary first, the others in the ring's order. moved: replicas not in current.

    shares: what each leaf was to hold.
    """

    replicas: Mapping[int, tuple[str, ...]]
    moved: int
    shares: Shares


def solve(problem: PlacementProblem) -> PlacementSolution:
    """Place every shard. Raises InvalidArgument when the problem has no solution."""
    _check_problem(problem)
    placing = _Placing(problem)
    placing.fill_directly()
    placing.move_directly()
    while placing.augment():
        pass
    primaries = _spread_primaries(problem, placing)
    replicas = {
        shard: (primaries[shard], *(leaf for leaf in placing.order[shard] if leaf in held and leaf != primaries[shard]))
        for shard, held in sorted(placing.held.items())
    }
    moved = sum(leaf not in problem.current.get(shard, ()) for shard, leaves in replicas.items() for leaf in leaves)
    solution = PlacementSolution(replicas, moved, placing.shares)
    check_solution(problem, solution)
    return solution


def check_solution(problem: PlacementProblem, solution: PlacementSolution) -> None:
    """Raise Internal unless the solution keeps the promises of this module (minimal movement aside)."""
    zone_of = {leaf.id: leaf.zone for leaf in problem.leaves if leaf.weight > 0}
    zones_wanted = min(problem.replicas, len(set(zone_of.values())))
    _require(set(solution.replicas) == set(problem.shards), "a shard is missing")
    for shard, leaves in solution.replicas.items():
        _require(len(leaves) == len(set(leaves)) == problem.replicas, f"shard {shard} does not have {problem.replicas} leaves")
        _require(set(leaves) <= set(zone_of), f"shard {shard} is on a leaf that may hold nothing")
        _require(len({zone_of[leaf] for leaf in leaves}) >= zones_wanted, f"shard {shard} is in too few zones")
    loads = Counter(leaf for leaves in solution.replicas.values() for leaf in leaves)
    primaries = Counter(leaves[0] for leaves in solution.replicas.values())
    for leaf in zone_of:
        fair = solution.shares.fair[leaf]
        _require(floor(fair) <= loads[leaf] <= ceil(fair), f"leaf {leaf} holds {loads[leaf]} replicas, its share is {fair}")
        _require(loads[leaf] <= max(ceil(fair), floor(LOAD_BOUND * fair)), f"leaf {leaf} is over the load bound")
        part = Fraction(loads[leaf], problem.replicas)
        _require(floor(part) <= primaries[leaf] <= ceil(part), f"leaf {leaf} is primary {primaries[leaf]} times, not {part}")


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise Internal(f"placement broke its promise: {otherwise}")


def _check_problem(problem: PlacementProblem) -> None:
    usable = [leaf.id for leaf in problem.leaves if leaf.weight > 0]
    if problem.replicas < 1:
        raise InvalidArgument(f"a shard needs at least 1 replica, not {problem.replicas}", ErrorDetails(field="replicas"))
    if problem.replicas > len(usable):
        raise InvalidArgument(
            f"{problem.replicas} replicas of a shard need as many leaves, and there are {len(usable)}",
            ErrorDetails(field="replicas", limit=len(usable)),
        )
    if len({leaf.id for leaf in problem.leaves}) < len(problem.leaves):
        raise InvalidArgument("two leaves have the same id", ErrorDetails(field="leaves"))
    if len(set(problem.shards)) < len(problem.shards):
        raise InvalidArgument("a shard is named twice", ErrorDetails(field="shards"))


@dataclass(frozen=True, slots=True)
class _Step:
    """One link of a chain: the shard that gets a replica on the leaf reached, and the leaf it leaves (None: it missed one)."""

    shard: int
    source: str | None


class _Placing:
    """The placement while it is made.

    Invariants: a shard's replicas are on different leaves, at most `replicas` of them, and those it still misses suffice to
    reach every zone it has to reach. No leaf goes above its quota that was not above it at the start.
    """

    def __init__(self, problem: PlacementProblem) -> None:
        ring = Ring(problem.leaves, problem.seed)
        self.replicas = problem.replicas
        self.zone_of = {leaf.id: leaf.zone for leaf in sorted(problem.leaves, key=lambda each: each.id) if leaf.weight > 0}
        self.zones_wanted = min(self.replicas, len(set(self.zone_of.values())))
        self.shards = sorted(problem.shards)
        self.order = {shard: ring.order(shard) for shard in self.shards}
        usable = {
            shard: [leaf for leaf in self.order[shard] if leaf in problem.current.get(shard, ())] for shard in self.shards
        }
        before = Counter(leaf for leaves in usable.values() for leaf in leaves)
        weights = {leaf.id: leaf.weight for leaf in problem.leaves if leaf.weight > 0}
        self.shares = fair_shares(weights, self.zone_of, len(self.shards), self.replicas, before)
        self.held: dict[int, set[str]] = {}
        self.on: dict[str, set[int]] = {leaf: set() for leaf in self.zone_of}
        self._surplus = {leaf: before[leaf] - self.shares.quota[leaf] for leaf in self.zone_of}
        for shard in self.shards:
            self.held[shard] = self._keep(usable[shard])
            for leaf in self.held[shard]:
                self.on[leaf].add(shard)
        self.kept = {shard: frozenset(leaves) for shard, leaves in self.held.items()}

    def _keep(self, leaves: list[str]) -> set[str]:
        """What may stay of a shard's replicas: too many, or too many in one zone, go from the fullest leaf first."""
        kept = list(leaves)
        while len(kept) > self.replicas or not self._fits(kept):
            in_zone = Counter(self.zone_of[leaf] for leaf in kept)
            crowded = [leaf for leaf in kept if in_zone[self.zone_of[leaf]] > 1] or kept
            gone = max(crowded, key=lambda leaf: (self._surplus[leaf], kept.index(leaf)))
            kept.remove(gone)
            self._surplus[gone] -= 1
        return set(kept)

    def _fits(self, leaves: Collection[str]) -> bool:
        """The replicas that are missing suffice to reach the zones that are missing."""
        return len({self.zone_of[leaf] for leaf in leaves}) + self.replicas - len(leaves) >= self.zones_wanted

    def _room(self, leaf: str) -> int:
        return self.shares.quota[leaf] - len(self.on[leaf])

    def _may_take(self, shard: int, leaf: str, source: str | None) -> bool:
        """The shard may have a replica on this leaf, in place of the one at the source or as one that was missing."""
        held = self.held[shard]
        return leaf not in held and self._fits((held - {source}) | {leaf} if source else held | {leaf})

    def _apply(self, step: _Step, leaf: str) -> None:
        _require(self._may_take(step.shard, leaf, step.source), f"shard {step.shard} cannot go to leaf {leaf}")
        if step.source is not None:
            self.held[step.shard].remove(step.source)
            self.on[step.source].remove(step.shard)
        self.held[step.shard].add(leaf)
        self.on[leaf].add(step.shard)

    def fill_directly(self) -> None:
        """Give every shard the replicas it misses where leaves with room allow, in the ring's order."""
        for shard in self.shards:
            for leaf in self.order[shard]:
                if len(self.held[shard]) == self.replicas:
                    break
                if self._room(leaf) > 0 and self._may_take(shard, leaf, None):
                    self._apply(_Step(shard, None), leaf)

    def move_directly(self) -> None:
        """Move single replicas from leaves above their quota to leaves with room, first those whose order likes it least."""
        for source in self.zone_of:
            for shard in sorted(self.on[source], key=lambda each: (-self.order[each].index(source), each)):
                if self._room(source) >= 0:
                    break
                for leaf in self.order[shard]:
                    if self._room(leaf) > 0 and self._may_take(shard, leaf, source):
                        self._apply(_Step(shard, source), leaf)
                        break

    def augment(self) -> bool:
        """Move one replica's worth of load to a leaf with room, by the cheapest chain of moves. False when nothing is left."""
        reached = self._cheapest_chains()
        ends = [leaf for leaf in reached if self._room(leaf) > 0]
        if not ends:
            is_done = all(self._room(leaf) == 0 for leaf in self.zone_of)
            _require(is_done, "no chain of moves leads to the quotas")
            return False
        leaf = min(ends, key=lambda each: (reached[each][0], each))
        while (step := reached[leaf][1]) is not None:
            self._apply(step, leaf)
            if step.source is None:
                break
            leaf = step.source
        return True

    def _cheapest_chains(self) -> dict[str, tuple[tuple[int, int], _Step | None]]:
        """For each leaf that can be reached: (replicas newly moved, steps) of the cheapest chain to it, and its last step.

        Chains begin at a leaf above its quota or at a shard that misses a replica. Bellman-Ford, because putting a replica back
        where it was is worth a move. Among equal costs the shortest chain wins: it never passes one shard's zone twice, so its
        steps do not disturb each other.
        """
        reached: dict[str, tuple[tuple[int, int], _Step | None]] = {
            leaf: ((0, 0), None) for leaf in self.zone_of if self._room(leaf) < 0
        }
        for shard in self.shards:
            if len(self.held[shard]) < self.replicas:
                for leaf in self.order[shard]:
                    first = (self._cost(shard, leaf), 1)
                    if self._may_take(shard, leaf, None) and (leaf not in reached or first < reached[leaf][0]):
                        reached[leaf] = (first, _Step(shard, None))
        arcs = (
            self._arcs() if reached and not any(self._room(leaf) > 0 and reached[leaf][0] <= (1, 1) for leaf in reached) else []
        )
        for _ in self.zone_of:
            has_changed = False
            for source, leaf, cost, shard in arcs:
                if source not in reached:
                    continue
                (so_far, steps), _ = reached[source]
                through = (so_far + cost, steps + 1)
                if leaf not in reached or through < reached[leaf][0]:
                    reached[leaf] = (through, _Step(shard, source))
                    has_changed = True
            if not has_changed:
                return reached
        return reached

    def _cost(self, shard: int, leaf: str) -> int:
        return 0 if leaf in self.kept[shard] else 1

    def _arcs(self) -> list[tuple[str, str, int, int]]:
        """(from, to, cost, shard): for each pair of leaves the cheapest replica that may go from the one to the other."""
        best: dict[tuple[str, str], tuple[int, int]] = {}
        for shard in self.shards:
            for source in self.held[shard]:
                back = self._cost(shard, source)
                for leaf in self.zone_of:
                    cost = self._cost(shard, leaf) - back
                    known = best.get((source, leaf))
                    if (known is None or (cost, shard) < known) and self._may_take(shard, leaf, source):
                        best[source, leaf] = (cost, shard)
        return [(source, leaf, cost, shard) for (source, leaf), (cost, shard) in sorted(best.items())]


def _spread_primaries(problem: PlacementProblem, placing: _Placing) -> dict[int, str]:
    """The primary of each shard: each leaf gets its part of the replicas it holds, rounded up or down.

    That is always possible: giving each leaf exactly 1/replicas of each of its shards is a fractional solution, and such
    assignment problems have whole-numbered solutions within the rounded bounds.
    """
    primaries: dict[int, str] = {}
    count = Counter(dict.fromkeys(placing.zone_of, 0))
    for shard in placing.shards:
        current = problem.current.get(shard, ())[:1]
        held = placing.held[shard]
        stays = current[0] if current and current[0] in held else None
        ranked = [leaf for leaf in placing.order[shard] if leaf in held]
        primaries[shard] = stays or min(
            ranked, key=lambda leaf: (Fraction(count[leaf], len(placing.on[leaf])), ranked.index(leaf))
        )
        count[primaries[shard]] += 1
    part = {leaf: Fraction(len(placing.on[leaf]), problem.replicas) for leaf in placing.zone_of}
    while over := [leaf for leaf in part if count[leaf] > ceil(part[leaf])]:
        _shift(primaries, count, placing.held, over[:1], [leaf for leaf in part if count[leaf] < ceil(part[leaf])])
    while under := [leaf for leaf in part if count[leaf] < floor(part[leaf])]:
        _shift(primaries, count, placing.held, [leaf for leaf in part if count[leaf] > floor(part[leaf])], under[:1])
    return primaries


def _shift(
    primaries: dict[int, str], count: Counter[str], held: Mapping[int, set[str]], sources: Iterable[str], ends: Collection[str]
) -> None:
    """Hand primaries over along a shortest chain, so that one of the sources has one less and one of the ends one more."""
    shards_of: dict[str, list[int]] = {}
    for shard, leaf in sorted(primaries.items()):
        shards_of.setdefault(leaf, []).append(shard)
    came_by: dict[str, tuple[str, int] | None] = dict.fromkeys(sources)
    queue = deque(came_by)
    while queue:
        leaf = queue.popleft()
        if leaf in ends:
            count[leaf] += 1
            while (step := came_by[leaf]) is not None:
                giver, shard = step
                primaries[shard] = leaf
                leaf = giver
            count[leaf] -= 1
            return
        for shard in shards_of.get(leaf, ()):
            for other in sorted(held[shard] - came_by.keys()):
                came_by[other] = (leaf, shard)
                queue.append(other)
    raise Internal("placement broke its promise: primaries cannot be spread")

"""What a soak has seen, and whether it is right."""

import json
import pathlib
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass
class Round:
    """One round: its faults, what the load saw, how long it took to be whole again."""

    kinds: tuple[str, ...]
    is_masked: bool
    calls: int
    unknown: int
    errors: dict[str, int]
    write_gap_s: float
    read_gap_s: float
    whole_s: float
    lost: int
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " + ".join(self.kinds)


@dataclass
class Report:
    """All rounds. broken: why the soak could not go on, if so."""

    seed: int
    rounds: list[Round] = field(default_factory=list)
    seconds: float = 0.0
    ledger_keys: int = 0
    broken: str = ""

    @property
    def wrong(self) -> list[str]:
        """Everything that must not be."""
        found = [
            f"round {number}, {each.name}: {problem}" for number, each in enumerate(self.rounds, 1) for problem in each.problems
        ]
        found += [
            f"round {number}, {each.name}: errors though a replica could serve: {each.errors}"
            for number, each in enumerate(self.rounds, 1)
            if each.is_masked and each.errors
        ]
        return [*found, self.broken] if self.broken else found

    def summary(self) -> dict[str, object]:
        errors: Counter[str] = Counter()
        for each in self.rounds:
            errors.update(each.errors)
        calls = sum(each.calls for each in self.rounds)
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "rounds": len(self.rounds),
            "operations": calls,
            "operations_per_s": round(calls / self.seconds, 1) if self.seconds else 0.0,
            "faults": dict(Counter(kind for each in self.rounds for kind in each.kinds)),
            "errors": dict(errors),
            "unknown_outcomes": sum(each.unknown for each in self.rounds),
            "acknowledged_ledger_writes": self.ledger_keys,
            "lost_writes": sum(each.lost for each in self.rounds),
            "violations": sum(len(each.problems) for each in self.rounds) - sum(each.lost for each in self.rounds),
            "write_gap_s_max": max((each.write_gap_s for each in self.rounds), default=0.0),
            "read_gap_s_max": max((each.read_gap_s for each in self.rounds), default=0.0),
        }

    def show(self, target: pathlib.Path) -> None:
        """Print it, and write it as JSON."""
        console = Console(width=max(140, Console().width))
        for name, value in self.summary().items():
            console.print(f"{name:28} {value}", highlight=False)
        console.print(self._table())
        for problem in self.wrong:
            console.print(f"WRONG: {problem}", highlight=False, markup=False)
        target.parent.mkdir(parents=True, exist_ok=True)
        rounds = [asdict(each) for each in self.rounds]
        target.write_text(json.dumps({**self.summary(), "wrong": self.wrong, "rounds": rounds}, indent=2) + "\n")
        console.print(f"written to {target}; the same schedule again: make soak SEED={self.seed}", highlight=False)

    def _table(self) -> Table:
        table = Table("faults of a round", "n", "gap of writes, max", "gap of reads, max", "whole again, max", "errors")
        by_name: dict[str, list[Round]] = defaultdict(list)
        for each in self.rounds:
            by_name[each.name if len(each.kinds) == 1 else "two at once"].append(each)
        for name, rounds in sorted(by_name.items()):
            figures = [max(getattr(each, field) for each in rounds) for field in ("write_gap_s", "read_gap_s", "whole_s")]
            errors = sum(sum(each.errors.values()) for each in rounds)
            table.add_row(name, str(len(rounds)), *(f"{figure:.2f} s" for figure in figures), str(errors))
        return table

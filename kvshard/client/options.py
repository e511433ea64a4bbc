"""How reads are done, by client and by call.

Pure data apart from `to_wire`, which writes it into a request.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal, TypedDict

from kvshard.client.checks import check_timeout, invalid
from kvshard.v1 import types_pb2

ConsistencyName = Literal["strong", "stale"]
ReplicaChoiceName = Literal["adaptive", "random", "primary"]
ShortfallName = Literal["fail", "partial"]

_CONSISTENCY = {"strong": types_pb2.CONSISTENCY_STRONG, "stale": types_pb2.CONSISTENCY_STALE}
_SHORTFALL = {"fail": types_pb2.SHORTFALL_POLICY_FAIL, "partial": types_pb2.SHORTFALL_POLICY_PARTIAL}
_REPLICA_CHOICES = ("adaptive", "random", "primary")


DEFAULT_TIMEOUT_S = 10.0
"""Several times what a shard takes to get a new primary, so that a call outlives the loss of a leaf."""


class ReadOverrides(TypedDict, total=False):
    """What a single read may set otherwise than its client does. None means: as the client."""

    timeout: float | None
    consistency: ConsistencyName | None
    hedge: str | None
    replica_choice: ReplicaChoiceName | None
    min_coverage: float | None
    on_shortfall: ShortfallName | None
    explain_timing: bool | None


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a read is done.

    timeout: seconds for the whole call with its retries. consistency: "strong" or "stale". hedge: "auto", "off", "10ms",
    "p99", "min(p99,50ms)"; empty: as the collection has it, or else the router. replica_choice: "adaptive", "random",
    "primary". min_coverage: the least fraction of the documents that a gathered answer must have considered.
    on_shortfall: "fail" or "partial" below it. explain_timing: ask for a Timing.
    """

    timeout: float = DEFAULT_TIMEOUT_S
    consistency: str = "strong"
    hedge: str = ""
    replica_choice: str = "adaptive"
    min_coverage: float = 1.0
    on_shortfall: str = "fail"
    explain_timing: bool = False

    def __post_init__(self) -> None:
        check_timeout(self.timeout)
        if self.consistency not in _CONSISTENCY:
            raise invalid(f'consistency is "strong" or "stale", not {self.consistency!r}', "options.consistency")
        if self.replica_choice not in _REPLICA_CHOICES:
            raise invalid(f"replica_choice is one of {_REPLICA_CHOICES}, not {self.replica_choice!r}", "options.replica_choice")
        if not 0.0 <= self.min_coverage <= 1.0:
            raise invalid(f"min_coverage lies between 0 and 1, not {self.min_coverage!r}", "options.min_coverage")
        if self.on_shortfall not in _SHORTFALL:
            raise invalid(f'on_shortfall is "fail" or "partial", not {self.on_shortfall!r}', "options.on_shortfall")

    def overridden(self, overrides: ReadOverrides) -> "ReadOptions":
        """These options with what a call sets otherwise."""
        given = {name: value for name, value in overrides.items() if value is not None}
        if not given:
            return self
        unknown = given.keys() - _FIELDS
        if unknown:
            raise TypeError(f"unknown read option {min(unknown)!r}; there are {', '.join(sorted(_FIELDS))}")
        return replace(self, **given)  # type: ignore[arg-type]

    def to_wire(self) -> types_pb2.ReadOptions:
        """The options as they travel, defaults left out; the timeout travels as the call's deadline."""
        return types_pb2.ReadOptions(
            consistency=types_pb2.CONSISTENCY_UNSPECIFIED if self.consistency == "strong" else _CONSISTENCY[self.consistency],
            hedge=self.hedge,
            replica_choice="" if self.replica_choice == "adaptive" else self.replica_choice,
            min_coverage=None if self.min_coverage == 1.0 else self.min_coverage,
            on_shortfall=_SHORTFALL[self.on_shortfall],
            explain_timing=self.explain_timing,
        )


_FIELDS = frozenset(field.name for field in fields(ReadOptions))

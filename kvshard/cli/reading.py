"""The flags that say how a read is to be done, the same for every verb that reads; and what its coverage says to people."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from kvshard.client.options import ReadOverrides
    from kvshard.client.results import Coverage


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a read of any kind is to be done; what is left out is as the collection, or the router, has it."""

    consistency: Annotated[
        Literal["strong", "stale"] | None,
        Parameter(help='"strong" sees every acknowledged write; "stale" takes what any reachable replica has.'),
    ] = None
    stale: Annotated[bool, Parameter(negative="", help="The same as --consistency stale.")] = False
    hedge: Annotated[
        str | None,
        Parameter(
            help='When to ask a spare replica too: "auto", "off", a delay as "10ms", a quantile as "p99", "min(p99,50ms)"; as '
            "the collection has it without this flag."
        ),
    ] = None
    replica_choice: Annotated[
        Literal["adaptive", "random", "primary"] | None,
        Parameter(help="Which replica is asked first; adaptive (the fastest that is not busy) without this flag."),
    ] = None

    def overrides(self) -> "ReadOverrides":
        """What the client is told. Raises InvalidArgument when the flags contradict each other."""
        from kvshard.client.checks import invalid

        if self.stale and self.consistency == "strong":
            raise invalid("--stale and --consistency strong exclude each other", "consistency")
        said: ReadOverrides = {}
        if self.stale or self.consistency:
            said["consistency"] = "stale" if self.stale else self.consistency
        if self.hedge is not None:
            said["hedge"] = self.hedge
        if self.replica_choice is not None:
            said["replica_choice"] = self.replica_choice
        return said


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """What a gathered read does when shards do not answer."""

    min_coverage: Annotated[
        float | None,
        Parameter(help="Least part of the documents (0 to 1) that the answer must have considered; 1 without this flag."),
    ] = None
    on_shortfall: Annotated[
        Literal["fail", "partial"] | None,
        Parameter(help='Below that: "fail", or answer with what there is ("partial"); fail without this flag.'),
    ] = None
    partial: Annotated[bool, Parameter(negative="", help="The same as --on-shortfall partial.")] = False

    def overrides(self) -> "ReadOverrides":
        """What the client is told. Raises InvalidArgument when the flags contradict each other."""
        from kvshard.client.checks import invalid

        if self.partial and self.on_shortfall == "fail":
            raise invalid("--partial and --on-shortfall fail exclude each other", "on_shortfall")
        said: ReadOverrides = {}
        if self.min_coverage is not None:
            said["min_coverage"] = self.min_coverage
        if self.partial or self.on_shortfall:
            said["on_shortfall"] = "partial" if self.partial else self.on_shortfall
        return said


ANYHOW = Reading()
WHOLE = Gathering()


def coverage_text(coverage: "Coverage") -> str:
    """How much answered, in a few words."""
    if coverage.complete:
        return f"all {coverage.legs} shards answered"
    share = f"{coverage.documents_considered:,} of {coverage.documents_total:,} documents considered"
    if not coverage.failed:
        return f"INCOMPLETE: an earlier page lacked shards; now {coverage.legs_ok} of {coverage.legs} answered, {share}"
    return f"INCOMPLETE: {coverage.legs_ok} of {coverage.legs} shards answered, {share}"


def missing_lines(coverage: "Coverage") -> Iterator[str]:
    """A line for each shard that is missing: why, and who was asked."""
    for failed in coverage.failed:
        tried = failed.error.details.replicas_tried
        asked = f" (asked: {', '.join(tried)})" if tried else ""
        yield f"shard {failed.shard} is missing: {failed.error.message or failed.error.reason.lower()}{asked}"

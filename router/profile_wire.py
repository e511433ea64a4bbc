"""What searches tell about themselves, on the wire: how scores came about, and what the legs did."""

from collections.abc import Sequence

from kvshard.rpc.key_convert import timing_to_proto
from kvshard.scatter.ledger import Timing
from kvshard.search_accounts import ProfiledLeg, ScoreExplanation
from kvshard.v1 import search_pb2


def explanation_to_proto(explanation: ScoreExplanation) -> search_pb2.Explanation:
    """How a score came about."""
    return search_pb2.Explanation(
        value=explanation.value,
        description=explanation.description,
        details=map(explanation_to_proto, explanation.details),
    )


def profile_to_proto(legs: Sequence[ProfiledLeg], timing: Timing) -> search_pb2.Profile:
    """What a search did."""
    return search_pb2.Profile(legs=[_leg(leg) for leg in legs], timing=timing_to_proto(timing))


def _leg(leg: ProfiledLeg) -> search_pb2.LegProfile:
    profile = leg.profile
    return search_pb2.LegProfile(
        shard=leg.shard,
        leaf=leg.leaf,
        collection=leg.collection,
        terms=[search_pb2.ProfiledTerm(field=each.field, term=each.term, documents=each.documents) for each in profile.terms],
        phases=[search_pb2.ProfiledPhase(name=each.name, took_us=each.took_us) for each in profile.phases],
        indexed_through=profile.indexed_through,
        segments=profile.segments,
        documents=profile.documents,
        matches=profile.matches,
        hits=profile.hits,
    )

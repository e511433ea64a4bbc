"""Vector fields: their type in a schema, which vectors fit it, and what the scores of nearness mean.

    vector(384)         cosine
    vector(384,dot)     inner product, for vectors that are normalised already or whose length matters
    vector(384,l2)      Euclidean distance

A score is larger for what is nearer, so that vector and text results read alike: cosine (1 + cos) / 2, l2 1 / (1 + distance
squared), dot the product itself.

Pure: imports only the standard library and other pure files.
"""

import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Final, NamedTuple

from kvshard.errors import ErrorDetails, InvalidArgument

COSINE: Final = "cosine"
DOT: Final = "dot"
L2: Final = "l2"
METRICS: Final = (COSINE, DOT, L2)

VECTOR_MAX_DIM: Final = 4_096
"""Components of a vector: the widest embeddings in use have 4,096. A leaf holds a field in memory, 4 bytes a component."""

COMPONENT_MAX: Final = 1e15
"""Of a component's absolute value: the squares of VECTOR_MAX_DIM of them add up to less than what 32 bits hold."""

COMPONENT_MIN: Final = 1e-15
"""Of the largest component, where directions are compared: the square of a smaller one is nothing in 32 bits."""

NEAREST_MAX: Final = 1_000
"""Nearest neighbours of one search, as hits of a page."""

K_LEAST: Final = 20
"""Neighbours that are fused with the hits of a text where nobody says how many: more than a page, so that what is low in one
order and high in the other is seen."""

_TYPE = re.compile(r"vector\(\s*(\d{1,9})\s*(?:,\s*([a-z0-9]+)\s*)?\)\Z")


class VectorType(NamedTuple):
    """What a vector field holds."""

    dim: int
    metric: str

    @property
    def text(self) -> str:
        """As it stands in a schema."""
        return f"vector({self.dim})" if self.metric == COSINE else f"vector({self.dim},{self.metric})"


def parse_vector_type(text: str) -> VectorType:
    """The type that stands in a schema. Raises ValueError that says what is wrong."""
    match = _TYPE.match(text)
    if match is None:
        raise ValueError("a vector field is written vector(DIM) or vector(DIM,METRIC), as in vector(384,cosine)")
    dim, metric = int(match[1]), match[2] or COSINE
    if not 1 <= dim <= VECTOR_MAX_DIM:
        raise ValueError(f"a vector has 1 to {VECTOR_MAX_DIM} components, not {dim}")
    if metric not in METRICS:
        raise ValueError(f"{metric!r} is no metric; known are {', '.join(METRICS)}")
    return VectorType(dim, metric)


def check_vector(vector_type: VectorType, given: object, field: str) -> list[float]:
    """The vector, if it is one of this type. field: named in the InvalidArgument otherwise."""
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise InvalidArgument(f"{field} must be a list of {vector_type.dim} numbers", ErrorDetails(field=field))
    if len(given) != vector_type.dim:
        message = f"{field} must have {vector_type.dim} components, not {len(given)}"
        raise InvalidArgument(message, ErrorDetails(field=field, limit=vector_type.dim))
    for at, each in enumerate(given):
        if type(each) not in (float, int) or not isfinite(each) or abs(each) > COMPONENT_MAX:
            message = f"{field}[{at}] must be a finite number of at most {COMPONENT_MAX:g} in size"
            raise InvalidArgument(message, ErrorDetails(field=field))
    found = [float(each) for each in given]
    if vector_type.metric == COSINE and max(map(abs, found)) < COMPONENT_MIN:
        raise InvalidArgument(f"{field} is nothing but zeros, which have no direction to compare", ErrorDetails(field=field))
    return found


def vector_bytes(vector: Sequence[float]) -> bytes:
    """A vector as 32-bit floats, the low byte first: as it is stored, and sent to leaves."""
    packed = array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def vector_of(packed: bytes) -> list[float]:
    """The vector of `vector_bytes`."""
    vector = array("f", packed)
    if sys.byteorder == "big":
        vector.byteswap()
    return vector.tolist()


class Nearest(NamedTuple):
    """Find the documents whose vector in a field is nearest to this one; with a query, fused with its hits.

    k: how many; 0: as many as hits are wanted, at least K_LEAST.
    """

    field: str
    vector: Sequence[float]
    k: int = 0

    def wanted(self, limit: int) -> int:
        """How many, for a page of so many hits."""
        return self.k or min(NEAREST_MAX, max(limit, K_LEAST))


def check_nearest(schema: Mapping[str, str], field: str, dim: int, k: int) -> VectorType:
    """The type of the field, if it holds vectors of this length. Raises InvalidArgument."""
    field_type = schema.get(field)
    if field_type is None or not field_type.startswith("vector("):
        known = [name for name, each in schema.items() if each.startswith("vector(")]
        hint = f"the collection's are {', '.join(known)}" if known else "the collection has none"
        raise InvalidArgument(f"{field[:64]!r} is no vector field; {hint}", ErrorDetails(field="nearest.field"))
    vector_type = parse_vector_type(field_type)
    if dim != vector_type.dim:
        message = f"nearest.vector must have {vector_type.dim} components, as {field} has, not {dim}"
        raise InvalidArgument(message, ErrorDetails(field="nearest.vector", limit=vector_type.dim))
    if not 0 <= k <= NEAREST_MAX:
        raise InvalidArgument(
            f"nearest.k must be 1 to {NEAREST_MAX}, not {k}", ErrorDetails(field="nearest.k", limit=NEAREST_MAX)
        )
    return vector_type

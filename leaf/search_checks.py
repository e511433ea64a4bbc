"""What a search may ask of a leaf, beside its query: checked against the schema before anything is looked for."""

from kvshard.aggregations.check import check_aggregations
from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.limits import FACET_MAX_VALUES, SEARCH_MAX_LIMIT
from kvshard.model import ShardSearch
from kvshard.query import prepare
from kvshard.scatter.shaping import check_shape
from kvshard.schema import KEYWORD, TEXT, Schema, base_type
from kvshard.sorting import check_sort, parse_sort
from kvshard.unknown_fields import unknown_field
from kvshard.vectors import check_nearest


def check_request(request: ShardSearch, schema: Schema) -> None:
    """Raise InvalidArgument, naming the field, unless the request keeps the limits and fits the schema."""
    if request.limit < 0 or request.limit > SEARCH_MAX_LIMIT:
        details = ErrorDetails(field="limit", limit=SEARCH_MAX_LIMIT)
        raise InvalidArgument(f"limit must be between 0 and {SEARCH_MAX_LIMIT}", details)
    if request.facet_limit < 0 or request.facet_limit > FACET_MAX_VALUES:
        details = ErrorDetails(field="facet_limit", limit=FACET_MAX_VALUES)
        raise InvalidArgument(f"facet_limit must be between 1 and {FACET_MAX_VALUES}", details)
    check_sort(parse_sort(request.sort), schema)
    check_search_fields(schema, request.facets, request.highlight)
    check_aggregations(request.aggregations, schema, lambda text, where: prepare(text, schema, where))
    if request.nearest is not None:
        check_nearest(schema, request.nearest.field, len(request.nearest.vector) // 4, request.nearest.k)
    check_shape(request.shape, schema, request.keys_only)


def check_search_fields(schema: Schema, facets: list[str], highlight: list[str]) -> None:
    """Raise InvalidArgument unless the fields exist and can be counted, highlighted."""
    for name in facets:
        if _type_of(schema, name, "facets") != KEYWORD:
            raise InvalidArgument(f"{name} is no keyword field; only those have facets", ErrorDetails(field="facets"))
    for name in highlight:
        if _type_of(schema, name, "highlight") != TEXT:
            message = f"{name} is no text field; only those are highlighted"
            raise InvalidArgument(message, ErrorDetails(field="highlight"))


def _type_of(schema: Schema, name: str, source: str) -> str:
    field_type = schema.get(name)
    if field_type is None:
        raise InvalidArgument(unknown_field(name, schema), ErrorDetails(field=source))
    return base_type(field_type)

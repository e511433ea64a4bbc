"""Structured queries on the wire, both ways."""

from collections.abc import Iterable

from google.protobuf import json_format

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.query import structured as s
from kvshard.query.asked import USUAL, QueryOptions
from kvshard.query.bounds import QUERY_MAX_NESTING
from kvshard.query.lowering import value_text
from kvshard.v1 import query_pb2 as wire
from kvshard.v1 import search_pb2

_OPERATORS = {"or": wire.OPERATOR_OR, "and": wire.OPERATOR_AND}
_UINT32_MAX = 2**32 - 1


def operator_of(number: int, field: str) -> s.Operator:
    """The operator of that number. Raises InvalidArgument for one there is not."""
    if number == wire.OPERATOR_AND:
        return "and"
    if number in (wire.OPERATOR_OR, wire.OPERATOR_UNSPECIFIED):
        return "or"
    raise InvalidArgument(f"there is no operator number {number}", ErrorDetails(field=field))


def operator_to_proto(operator: str, field: str) -> "wire.Operator.ValueType":
    """The number of an operator. Raises InvalidArgument."""
    if operator not in _OPERATORS:
        raise InvalidArgument(f'{operator!r} is no operator; there are "or" and "and"', ErrorDetails(field=field))
    return _OPERATORS[operator]


def structured_of(message: wire.Query, source: str = "structured") -> s.StructuredQuery:
    """The query of a message. Raises InvalidArgument where the message says nothing or is too deep."""
    return _of(message, source, 0)


def options_of(request: search_pb2.SearchRequest) -> QueryOptions:
    """What a search asks for besides its query string. Raises InvalidArgument."""
    structured = structured_of(request.structured) if request.HasField("structured") else None
    operator = operator_of(request.default_operator, "default_operator")
    if structured is None and operator == "or" and not request.default_fields and not request.minimum_should_match:
        return USUAL
    return QueryOptions(structured, tuple(request.default_fields), request.minimum_should_match, operator)


def _of(message: wire.Query, source: str, depth: int) -> s.StructuredQuery:
    if depth > QUERY_MAX_NESTING:
        details = ErrorDetails(field=source, limit=QUERY_MAX_NESTING)
        raise InvalidArgument(f"a query may be nested at most {QUERY_MAX_NESTING} deep", details)
    kind = message.WhichOneof("kind")
    match kind:
        case "bool":
            given = message.bool
            return s.Bool(
                _all_of(given.must, f"{source}.bool.must", depth),
                _all_of(given.should, f"{source}.bool.should", depth),
                _all_of(given.must_not, f"{source}.bool.must_not", depth),
                _all_of(given.filter, f"{source}.bool.filter", depth),
                given.minimum_should_match or None,
            )
        case "dis_max":
            queries = _all_of(message.dis_max.queries, f"{source}.dis_max.queries", depth)
            return s.DisMax(queries, message.dis_max.tie_breaker)
        case "constant_score":
            constant = message.constant_score
            inner = _of(constant.query, f"{source}.constant_score.query", depth + 1)
            return s.ConstantScore(inner, constant.score if constant.HasField("score") else 1.0)
        case "boost":
            return s.Boost(_of(message.boost.query, f"{source}.boost.query", depth + 1), message.boost.factor)
        case None:
            raise InvalidArgument("a query says what it looks for; this one says nothing", ErrorDetails(field=source))
        case "match" | "match_phrase" | "query_string" | "more_like_this":
            return _text_of(message, f"{source}.{kind}")
        case _:
            return _leaf_of(message)


def _all_of(messages: Iterable[wire.Query], source: str, depth: int) -> tuple[s.StructuredQuery, ...]:
    return tuple(_of(each, f"{source}[{at}]", depth + 1) for at, each in enumerate(messages))


def _text_of(message: wire.Query, source: str) -> s.StructuredQuery:
    match message.WhichOneof("kind"):
        case "match":
            match = message.match
            operator, minimum = operator_of(match.operator, f"{source}.operator"), match.minimum_should_match or None
            fuzziness = _fuzziness_of(match.fuzziness, f"{source}.fuzziness")
            return s.Match(match.text, tuple(match.fields), operator, minimum, fuzziness)
        case "match_phrase":
            phrase = message.match_phrase
            return s.MatchPhrase(phrase.text, tuple(phrase.fields), phrase.slop)
        case "query_string":
            text = message.query_string
            operator = operator_of(text.operator, f"{source}.operator")
            return s.QueryString(text.query, tuple(text.fields), operator, text.minimum_should_match or None)
    like, usual = message.more_like_this, s.MoreLikeThis()
    return s.MoreLikeThis(
        tuple(like.texts),
        tuple(like.keys),
        tuple(like.fields),
        like.max_query_terms if like.HasField("max_query_terms") else usual.max_query_terms,
        like.min_term_freq if like.HasField("min_term_freq") else usual.min_term_freq,
        like.min_doc_freq if like.HasField("min_doc_freq") else usual.min_doc_freq,
        like.max_doc_freq,
        like.min_word_length,
        like.minimum_should_match or usual.minimum_should_match,
    )


def _leaf_of(message: wire.Query) -> s.StructuredQuery:
    match message.WhichOneof("kind"):
        case "term":
            return s.Term(message.term.field, message.term.value)
        case "terms":
            return s.AnyOf(message.terms.field, tuple(message.terms.values))
        case "prefix":
            return s.Prefix(message.prefix.field, message.prefix.text)
        case "wildcard":
            return s.Wildcard(message.wildcard.field, message.wildcard.pattern)
        case "regex":
            return s.Regex(message.regex.field, message.regex.pattern)
        case "fuzzy":
            fuzzy = message.fuzzy
            return s.Fuzzy(fuzzy.field, fuzzy.text, fuzzy.distance if fuzzy.HasField("distance") else None)
        case "range":
            given = message.range
            return s.Range(
                given.field,
                given.gt if given.HasField("gt") else None,
                given.gte if given.HasField("gte") else None,
                given.lt if given.HasField("lt") else None,
                given.lte if given.HasField("lte") else None,
            )
        case "exists":
            return s.Exists(message.exists.field)
        case "match_none":
            return s.MatchNone()
    return s.MatchAll()


def _fuzziness_of(text: str, source: str) -> "int | s.Auto | None":
    if text in {"0", "1", "2"}:
        return int(text)
    if text == "auto":
        return "auto"
    if text:
        message = f'a fuzziness is "0" to "2" or "auto", not {text[:40]!r}'
        raise InvalidArgument(message, ErrorDetails(field=source))
    return None


def structured_of_json(text: str) -> s.StructuredQuery:
    """The query of JSON, whose names are those of query.proto: {"match": {"text": "..."}}. Raises InvalidArgument."""
    try:
        return structured_of(json_format.Parse(text, wire.Query()))
    except json_format.ParseError as error:
        raise InvalidArgument(f"not a structured query: {error}", ErrorDetails(field="structured")) from None


def structured_to_proto(query: s.StructuredQuery, source: str = "query") -> wire.Query:
    """The message of a query. Raises InvalidArgument for what cannot be one; the rest is checked by the router."""
    try:
        return _to_proto(query, source, 0)
    except (TypeError, ValueError, AttributeError) as error:  # a field of another type, a number that is too large
        raise InvalidArgument(f"not a query: {str(error)[:200]}", ErrorDetails(field=source)) from None


def structured_of_search(query: s.StructuredQuery | str, matching: s.StructuredQuery | None) -> wire.Query | None:
    """The structured part of a search for a query and what else is to match. Raises InvalidArgument."""
    if isinstance(query, str):
        return None if matching is None else structured_to_proto(matching, "matching")
    return structured_to_proto(query if matching is None else s.Bool(must=(query, matching)))


def _to_proto(query: s.StructuredQuery, source: str, depth: int) -> wire.Query:
    if depth > QUERY_MAX_NESTING:
        details = ErrorDetails(field=source, limit=QUERY_MAX_NESTING)
        raise InvalidArgument(f"a query may be nested at most {QUERY_MAX_NESTING} deep", details)
    match query:
        case s.Bool():
            given = [
                [_to_proto(each, f"{source}.bool.{name}[{at}]", depth + 1) for at, each in enumerate(queries)]
                for name, queries in (
                    ("must", query.must),
                    ("should", query.should),
                    ("must_not", query.must_not),
                    ("filter", query.filter),
                )
            ]
            must, should, must_not, filters = given
            minimum = _share(query.minimum_should_match)
            message = wire.BoolQuery(must=must, should=should, must_not=must_not, filter=filters, minimum_should_match=minimum)
            return wire.Query(bool=message)
        case s.DisMax():
            queries = [_to_proto(each, f"{source}.dis_max.queries[{at}]", depth + 1) for at, each in enumerate(query.queries)]
            return wire.Query(dis_max=wire.DisMaxQuery(queries=queries, tie_breaker=query.tie_breaker))
        case s.ConstantScore():
            inner = _to_proto(query.query, f"{source}.constant_score.query", depth + 1)
            return wire.Query(constant_score=wire.ConstantScoreQuery(query=inner, score=query.score))
        case s.Boost():
            inner = _to_proto(query.query, f"{source}.boost.query", depth + 1)
            return wire.Query(boost=wire.BoostQuery(query=inner, factor=query.factor))
        case _:
            return _text_to_proto(query, source)


def _text_to_proto(query: s.StructuredQuery, source: str) -> wire.Query:
    match query:
        case s.Match():
            match = wire.MatchQuery(
                text=query.text,
                fields=_names(query.fields, f"{source}.match.fields"),
                operator=operator_to_proto(query.operator, f"{source}.match.operator"),
                minimum_should_match=_share(query.minimum_should_match),
                fuzziness="" if query.fuzziness is None else str(query.fuzziness),
            )
            return wire.Query(match=match)
        case s.MatchPhrase():
            fields = _names(query.fields, f"{source}.match_phrase.fields")
            slop = _count(query.slop, f"{source}.match_phrase.slop")
            return wire.Query(match_phrase=wire.MatchPhraseQuery(text=query.text, fields=fields, slop=slop))
        case s.QueryString():
            text = wire.StringQuery(
                query=query.query,
                fields=_names(query.fields, f"{source}.query_string.fields"),
                operator=operator_to_proto(query.operator, f"{source}.query_string.operator"),
                minimum_should_match=_share(query.minimum_should_match),
            )
            return wire.Query(query_string=text)
        case s.MoreLikeThis():
            inside = f"{source}.more_like_this"
            like = wire.MoreLikeThisQuery(
                texts=_names(query.texts, f"{inside}.texts"),
                keys=[key.encode() if isinstance(key, str) else key for key in query.keys],
                fields=_names(query.fields, f"{inside}.fields"),
                max_query_terms=_count(query.max_query_terms, f"{inside}.max_query_terms"),
                min_term_freq=_count(query.min_term_freq, f"{inside}.min_term_freq"),
                min_doc_freq=_count(query.min_doc_freq, f"{inside}.min_doc_freq"),
                max_doc_freq=_count(query.max_doc_freq, f"{inside}.max_doc_freq"),
                min_word_length=_count(query.min_word_length, f"{inside}.min_word_length"),
                minimum_should_match=_share(query.minimum_should_match),
            )
            return wire.Query(more_like_this=like)
        case _:
            return _leaf_to_proto(query, source)


def _leaf_to_proto(query: s.StructuredQuery, source: str) -> wire.Query:
    match query:
        case s.Term():
            return wire.Query(term=wire.TermQuery(field=query.field, value=value_text(query.value)))
        case s.AnyOf():
            if isinstance(query.values, str):
                raise InvalidArgument("values is a list, not one string", ErrorDetails(field=f"{source}.terms.values"))
            return wire.Query(terms=wire.TermsQuery(field=query.field, values=map(value_text, query.values)))
        case s.Prefix():
            return wire.Query(prefix=wire.PrefixQuery(field=query.field, text=query.text))
        case s.Wildcard():
            return wire.Query(wildcard=wire.WildcardQuery(field=query.field, pattern=query.pattern))
        case s.Regex():
            return wire.Query(regex=wire.RegexQuery(field=query.field, pattern=query.pattern))
        case s.Fuzzy():
            distance = None if query.distance is None else _count(query.distance, f"{source}.fuzzy.distance")
            return wire.Query(fuzzy=wire.FuzzyQuery(field=query.field, text=query.text, distance=distance))
        case s.Range():
            gt, gte, lt, lte = (
                None if bound is None else value_text(bound) for bound in (query.gt, query.gte, query.lt, query.lte)
            )
            return wire.Query(range=wire.RangeQuery(field=query.field, gt=gt, gte=gte, lt=lt, lte=lte))
        case s.Exists():
            return wire.Query(exists=wire.ExistsQuery(field=query.field))
        case s.MatchNone():
            return wire.Query(match_none=wire.MatchNoneQuery())
        case s.MatchAll():
            return wire.Query(match_all=wire.MatchAllQuery())
    raise InvalidArgument(f"a {type(query).__name__} is no query", ErrorDetails(field=source))


def _names(names: Iterable[str], source: str) -> list[str]:
    if isinstance(names, str):
        raise InvalidArgument("this is a list of strings, not one string", ErrorDetails(field=source))
    return list(names)


def _share(share: s.Share | None) -> str:
    return "" if share is None else str(share)


def _count(number: int, source: str) -> int:
    if type(number) is not int or not 0 <= number <= _UINT32_MAX:
        raise InvalidArgument(f"{number!r} is no number from 0 to {_UINT32_MAX}", ErrorDetails(field=source))
    return number

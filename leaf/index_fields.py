"""How a collection's schema and its values look inside the search index. Nothing else knows the index's own field names.

Each schema field `x` becomes `f_x`, which is searched, and unless it is text `s_x`, which holds the first value alone and is
sorted by; text has `n_x` instead, the number of terms that all its values were cut into. The index's own fields have no prefix,
so no schema can collide with them:
- `key`: the key in hexadecimal, as keywords are; such text sorts as the bytes do, and can be the bound of a range;
- `expires`: when the document expires (absent: never);
- `slot`: the token slot of the key, by which a split tells the documents that leave;
- `present`: names of the text fields that have a value, for `field:*`.

A vector field `x` is `v_x`, its components as 32-bit floats, and `w_x`, a number that stands for key and vector together: what
searches hold in memory they recognise by it (`leaf/vector_rows.py`).

Keywords are stored in hexadecimal after a "k": tantivy knows ranges over text only through its query parser, which cannot
quote their bounds. Hexadecimal keeps the order of the characters. Booleans and dates are integers.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeAlias

import mmh3
import msgspec
import tantivy

from kvshard.analyzers import NGRAM
from kvshard.errors import InvalidArgument
from kvshard.model import NEVER, SortValue
from kvshard.schema import FLOAT, INTEGER, KEYWORD, TEXT, VECTOR, Scalar, Schema, base_type, check_of, text_type
from kvshard.vectors import check_vector, parse_vector_type, vector_bytes
from leaf.analysis import begun_words, has_words_beside, term_count, tokenizer_name, words_tokenizer_name

KEY = "key"
EXPIRES = "expires"
PRESENT = "present"
SLOT = "slot"


def searched(name: str) -> str:
    """The index field that holds all values of a schema field."""
    return f"f_{name}"


def whole_words(name: str, field_type: str) -> str:
    """The index field that holds the words of a text field as they are: where its terms are others, one beside it."""
    return f"w_{name}" if has_words_beside(field_type) else searched(name)


def marked_in(name: str, field_type: str) -> str:
    """The index field whose terms are marked in the texts of a text field: not the beginnings of words."""
    return whole_words(name, field_type) if field_type == text_type(NGRAM) else searched(name)


def sorted_by(name: str) -> str:
    """The index field that holds the first value of a schema field; text fields have none."""
    return f"s_{name}"


def length_of(name: str) -> str:
    """The index field that holds the length of a text field, in terms."""
    return f"n_{name}"


def vector_stored(name: str) -> str:
    """The index field that holds the vectors of a schema field, each as `vector_bytes` packs it."""
    return f"v_{name}"


def vector_id(name: str) -> str:
    """The index field with the number that stands for a document's key and vector together."""
    return f"w_{name}"


def key_text(key: bytes) -> str:
    """A key as index text."""
    return "k" + key.hex()


def key_bytes(text: str) -> bytes:
    """The key of an index text."""
    return bytes.fromhex(text[1:])


def keyword_term(value: str) -> str:
    """A keyword as index term."""
    return "k" + value.encode().hex()


def keyword_of(term: str) -> str:
    """The keyword of an index term."""
    return bytes.fromhex(term[1:]).decode()


def index_schema(schema: Schema) -> tantivy.Schema:
    """The schema of the index of a collection."""
    builder = tantivy.SchemaBuilder()
    builder.add_text_field(KEY, stored=True, fast=True, tokenizer_name="raw", index_option="basic")
    builder.add_unsigned_field(EXPIRES, fast=True)
    builder.add_unsigned_field(SLOT, fast=True)
    builder.add_text_field(PRESENT, tokenizer_name="raw", index_option="basic")
    for name, field_type in schema.items():
        if base_type(field_type) == TEXT:
            builder.add_text_field(searched(name), tokenizer_name=tokenizer_name(field_type), index_option="position")
            builder.add_unsigned_field(length_of(name), fast=True)
            if has_words_beside(field_type):
                option = "basic" if field_type == text_type(NGRAM) else "position"
                words = whole_words(name, field_type)
                builder.add_text_field(words, tokenizer_name=words_tokenizer_name(field_type), index_option=option)
        elif field_type == KEYWORD:
            for field in (searched(name), sorted_by(name)):
                builder.add_text_field(field, fast=True, tokenizer_name="raw", index_option="basic")
        elif base_type(field_type) == VECTOR:
            builder.add_bytes_field(vector_stored(name), stored=True)
            builder.add_unsigned_field(vector_id(name), fast=True)
        elif field_type == FLOAT:
            builder.add_float_field(searched(name), indexed=True, fast=True)
            builder.add_float_field(sorted_by(name), fast=True)
        else:  # INTEGER, BOOLEAN, DATE
            builder.add_integer_field(searched(name), indexed=True, fast=True)
            # Searches that are collapsed by an integer look for sets of its values, which takes an index.
            builder.add_integer_field(sorted_by(name), indexed=field_type == INTEGER, fast=True)
    return builder.build()


def slots(fields: tantivy.Schema, first: int, last: int) -> tantivy.Query:
    """The documents whose keys lie in these slots, both inclusive."""
    return tantivy.Query.range_query(fields, SLOT, tantivy.FieldType.Unsigned, first, last)


def decode_sort_value(field_type: str, value: SortValue) -> SortValue:
    """The value that a search sorted by a field returns, as `ShardHit.sort_values` wants it."""
    return keyword_of(value) if field_type == KEYWORD and isinstance(value, str) else value


def sort_value_type(field_type: str) -> tantivy.FieldType:
    """tantivy's type of the field that is sorted by, for ranges over it."""
    return tantivy.FieldType.Float if field_type == FLOAT else tantivy.FieldType.Integer


class DocumentBuilder:
    """Makes index documents of the values of one collection. slot_of: key -> its token slot.

    Writes are checked by the schema, but what was written before a field was added was not: a value that does not fit is left
    out of its field. misfits: field -> documents that it was left out of; "": values that are no JSON object.
    """

    def __init__(self, schema: Schema, slot_of: Callable[[bytes], int], misfits: Mapping[str, int]) -> None:
        self.misfits = Counter(misfits)
        # Which field needs what is decided once here: for each document it would cost more than making the document.
        self._fields = [
            (name, check_of(field_type), _adder(name, field_type))
            for name, field_type in schema.items()
            if base_type(field_type) != VECTOR
        ]
        self._vectors = [
            (name, parse_vector_type(field_type)) for name, field_type in schema.items() if base_type(field_type) == VECTOR
        ]
        self._slot_of = slot_of
        self._decode: Callable[[bytes], object] = msgspec.json.Decoder().decode

    def build(self, key: bytes, value: bytes, expires_at_ms: int) -> tantivy.Document | None:
        """The index document; None where the value is no JSON object."""
        decoded = self._decoded(value)
        if decoded is None:
            self.misfits[""] += 1
            return None
        document = tantivy.Document()
        document.add_text(KEY, key_text(key))
        document.add_unsigned(SLOT, self._slot_of(key))
        if expires_at_ms != NEVER:
            document.add_unsigned(EXPIRES, expires_at_ms)
        given_of = decoded.get
        for name, check, add in self._fields:
            given = given_of(name)
            if given is None:
                continue
            try:
                values = [check(name, item) for item in given] if isinstance(given, list) else [check(name, given)]
            except InvalidArgument:
                self.misfits[name] += 1
                continue
            if values:
                add(document, values)
        for name, vector_type in self._vectors:
            given = given_of(name)
            if given is None:
                continue
            try:
                packed = vector_bytes(check_vector(vector_type, given, f"document.{name}"))
            except InvalidArgument:
                self.misfits[name] += 1
                continue
            document.add_bytes(vector_stored(name), packed)
            document.add_unsigned(vector_id(name), mmh3.hash64(key + packed, signed=False)[0])
        return document

    def _decoded(self, value: bytes) -> dict[str, object] | None:
        try:
            decoded = self._decode(value)
        except (ValueError, RecursionError):
            return None
        return decoded if isinstance(decoded, dict) else None


Adder: TypeAlias = Callable[[tantivy.Document, list[Scalar]], object]
"""Adds the values of one field to a document; there is at least one."""


def _adder(name: str, field_type: str) -> Adder:
    if field_type == text_type(NGRAM):
        return _begun_words_adder(name, field_type)
    if base_type(field_type) == TEXT:
        return _text_adder(name, field_type)
    if field_type == KEYWORD:
        return _keyword_adder(name)
    return _number_adder(name, tantivy.Document.add_float if field_type == FLOAT else tantivy.Document.add_integer, field_type)


def _text_adder(name: str, field_type: str) -> Adder:
    field, length_field = searched(name), length_of(name)
    words_field = whole_words(name, field_type) if has_words_beside(field_type) else None

    def add(document: tantivy.Document, values: list[Scalar]) -> None:
        document.add_text(PRESENT, name)
        length = 0
        for text in values:
            document.add_text(field, str(text))
            if words_field is not None:
                document.add_text(words_field, str(text))
            length += term_count(field_type, str(text))
        document.add_unsigned(length_field, length)

    return add


def _begun_words_adder(name: str, field_type: str) -> Adder:
    field, words_field, length_field = searched(name), whole_words(name, field_type), length_of(name)

    def add(document: tantivy.Document, values: list[Scalar]) -> None:
        document.add_text(PRESENT, name)
        length = 0
        for text in values:
            document.add_text(words_field, str(text))
            for word in begun_words(str(text)):
                document.add_text(field, word)
                length += len(word)
            document.add_text(field, "")  # one more place free: a phrase ends with its text
        document.add_unsigned(length_field, length)

    return add


def _keyword_adder(name: str) -> Adder:
    field, first = searched(name), sorted_by(name)

    def add(document: tantivy.Document, values: list[Scalar]) -> None:
        # A value given twice is one value: facets count documents, not mentions.
        terms = [keyword_term(str(value)) for value in dict.fromkeys(values)]
        document.add_text(first, terms[0])
        for term in terms:
            document.add_text(field, term)

    return add


def _number_adder(name: str, add_number: Callable[..., None], field_type: str) -> Adder:
    field, first = searched(name), sorted_by(name)
    number_of: type[int | float] = float if field_type == FLOAT else int

    def add(document: tantivy.Document, values: list[Scalar]) -> None:
        add_number(document, first, number_of(values[0]))
        for value in dict.fromkeys(values):
            add_number(document, field, number_of(value))

    return add

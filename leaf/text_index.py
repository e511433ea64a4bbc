"""One tantivy index on disk: opened and checked, written, committed.

The folder of an index holds `segments/` (tantivy's own) and `indexed.json` (the sidecar): the schema it was built for,
`indexed_through`, the seqno whose effects the last commit holds, and `last_slot`, beyond which it holds no document. The
sidecar is renamed into place after tantivy's commit, so after a crash it is never ahead, and entries replayed on top of a newer
commit change nothing. A sidecar that a power cut left empty or old costs a replay or a rebuild, never a document: that is why
it is not synced.

Every failure of tantivy leaves this file as IndexFailed, which says whether the files are to blame.
"""

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

import structlog
import tantivy

from kvshard.clustermap import TOKEN_SLOTS
from kvshard.schema import VECTOR, Schema, base_type
from kvshard.vectors import parse_vector_type
from leaf.analysis import register
from leaf.index_fields import KEY, DocumentBuilder, index_schema, key_text, slots
from leaf.index_statistics import IndexStatistics
from leaf.query import QueryCompiler
from leaf.segments import Segment, parse_segments
from leaf.vector_rows import VectorRows

WRITER_HEAP_BYTES: Final = 15_000_000
"""The least that tantivy takes. A leaf may hold a writer for each of its shards; a segment of this size is large enough."""

UNCOMMITTED_MAX: Final = 16_384
"""Keys remembered between two commits, four times what a refresh takes: which ones a rebuild wrote must not fill the memory."""

FORMAT: Final = 3
"""Version of the layout of index folders; another one is rebuilt."""

_SIDECAR: Final = "indexed.json"
_SEGMENTS: Final = "segments"
_META: Final = "meta.json"
_DAMAGE_SIGNS: Final = ("corrupt", "ioerror", "invaliddata", "no such file", "does not exist", "filedoesnotexist", "footer")

NO_MISFITS: Final[Mapping[str, int]] = {}

SlotOf: TypeAlias = Callable[[bytes], int]
"""key -> its token slot."""

logger = structlog.get_logger(__name__)


class IndexFailed(Exception):
    """tantivy failed. is_damage: the index's files are missing or wrong, and only a rebuild helps."""

    def __init__(self, message: str, is_damage: bool = False) -> None:
        super().__init__(message)
        self.is_damage = is_damage


@contextmanager
def tantivy_failures() -> Iterator[None]:
    """Raise IndexFailed for whatever tantivy raises inside.

    A panic of tantivy comes as PanicException, a BaseException that cannot be imported; tantivy panics on damaged files.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        text = str(error).lower()
        is_disk_full = "no space left" in text or "os error 28" in text or getattr(error, "errno", 0) == errno.ENOSPC
        is_damage = not is_disk_full and any(sign in text for sign in _DAMAGE_SIGNS)
        raise IndexFailed(str(error)[:500], is_damage) from error
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise IndexFailed(f"tantivy panicked: {str(error)[:500]}", is_damage=True) from error


def schema_digest(schema: Schema) -> str:
    """Names a schema; the order of its fields does not matter."""
    return hashlib.sha256(json.dumps(sorted(schema.items())).encode()).hexdigest()


class TextIndex:
    """The index of one collection in one shard.

    `write`, `commit`, `close_writer` belong to one thread; searches run on others, on the snapshot that `searcher` gives.
    vectors: of its vector fields, by name.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        index: tantivy.Index,
        slot_of: SlotOf,
        indexed_through: int,
        last_slot: int,
        misfits: Mapping[str, int] = NO_MISFITS,
    ) -> None:
        self.path = path
        self.schema = schema
        self.indexed_through = indexed_through
        self.last_slot = last_slot
        self._cut_at: int | None = None
        self.compiler = QueryCompiler(schema, index)
        self._index = index
        register(index, schema)
        self.statistics = self._statistics_now(indexed_through)
        self.vectors = {
            name: VectorRows(name, parse_vector_type(field_type))
            for name, field_type in schema.items()
            if base_type(field_type) == VECTOR
        }
        self._slot_of = slot_of
        self._builder = DocumentBuilder(schema, slot_of, misfits)
        self._writer: tantivy.IndexWriter | None = None
        self._has_changes = False
        self._uncommitted: set[bytes] | None = set()
        """Keys written since the last commit; None when they were too many."""

    def __repr__(self) -> str:
        return f"TextIndex({self.path.name}, through {self.indexed_through}, writer {'open' if self._writer else 'closed'})"

    @classmethod
    def open(cls, path: Path, schema: Schema, slot_of: SlotOf) -> "TextIndex":
        """The index in this folder. Raises IndexFailed (is_damage) if there is none that fits the schema."""
        through, last_slot, misfits = _read_sidecar(path / _SIDECAR, schema)
        segments = path / _SEGMENTS
        with tantivy_failures():
            if not segments.is_dir() or not tantivy.Index.exists(str(segments)):
                raise IndexFailed("the index is missing", is_damage=True)
            index = tantivy.Index.open(str(segments))
            index.config_reader("manual")
            index.reload()
            # Opens every segment's files, so that a truncated one is found here rather than by the first search.
            index.searcher().search(tantivy.Query.all_query(), 1)
        return cls(path, schema, index, slot_of, through, last_slot, misfits)

    @classmethod
    def create(cls, path: Path, schema: Schema, slot_of: SlotOf, last_slot: int = TOKEN_SLOTS - 1) -> "TextIndex":
        """An empty index in the place of whatever is there. It counts as damaged until its first commit."""
        remove_index(path)
        segments = path / _SEGMENTS
        with tantivy_failures():
            segments.mkdir(parents=True)
            index = tantivy.Index(index_schema(schema), str(segments), reuse=False)
            index.config_reader("manual")
        return cls(path, schema, index, slot_of, 0, last_slot)

    @property
    def has_writer(self) -> bool:
        """Whether a writer is open."""
        return self._writer is not None

    @property
    def misfits(self) -> Mapping[str, int]:
        """Field -> documents whose value was left out of it, since it does not fit."""
        return self._builder.misfits

    @property
    def fields(self) -> tantivy.Schema:
        """tantivy's schema."""
        return self._index.schema

    @property
    def parse(self) -> Callable[[str], tantivy.Query]:
        """tantivy's query parser."""
        return self._index.parse_query

    def searcher(self) -> tantivy.Searcher:
        """A consistent snapshot of the last commit."""
        return self.statistics.searcher

    def _statistics_now(self, generation: int) -> IndexStatistics:
        """Of what a searcher sees from now on. Only the thread that commits makes another."""
        with tantivy_failures():
            return IndexStatistics(self._index.searcher(), self._index.schema, self.schema, generation)

    def write(self, changes: Mapping[bytes, tuple[bytes, int] | None]) -> None:
        """Let each key have this (value, expires_at_ms), or None: be gone. Raises IndexFailed; then nothing since the last
        commit counts, and the caller does it all again.
        """
        with tantivy_failures():
            writer = self._open_writer()
            self._has_changes = self._has_changes or bool(changes)
            try:
                committed = self._index.searcher()
                for key, change in changes.items():
                    document = self._document(key, change)
                    text = key_text(key)
                    # A deletion that finds nothing costs tantivy as much as the words of a short document.
                    if self._may_be_uncommitted(key) or committed.doc_freq(KEY, text):
                        writer.delete_documents_by_term(KEY, text)
                    if document is not None:
                        writer.add_document(document)
                self._note_uncommitted(changes)
            except Exception:
                self._drop_writer()
                raise

    def clear(self) -> None:
        """Remove all documents."""
        with tantivy_failures():
            self._open_writer().delete_all_documents()
            self._has_changes = True

    def cut(self, last_slot: int) -> None:
        """Remove the documents beyond a slot, with the next commit."""
        with tantivy_failures():
            self._open_writer().delete_documents_by_query(slots(self.fields, last_slot + 1, TOKEN_SLOTS - 1))
            self._has_changes = True
            self._cut_at = last_slot

    def fork(self, path: Path, first_slot: int, last_slot: int, through: int, slot_of: SlotOf) -> None:
        """Make an index of the last commit's documents in these slots, at a path where none is. through: see `commit`.

        Its files are shared with this one until either merges them. It is at its place whole or not at all.
        """
        self.close_writer()  # With its merges: no file may go while it is linked.
        made = path.with_name(f"{path.name}.new")
        remove_index(made)
        with tantivy_failures():
            (made / _SEGMENTS).mkdir(parents=True)
            for source in (self.path / _SEGMENTS).iterdir():
                if source.suffix == ".json":
                    shutil.copyfile(source, made / _SEGMENTS / source.name)
                elif source.suffix != ".lock":
                    os.link(source, made / _SEGMENTS / source.name)
            index = tantivy.Index.open(str(made / _SEGMENTS))
        forked = TextIndex(made, self.schema, index, slot_of, through, last_slot)
        with tantivy_failures():
            if first_slot:
                forked._open_writer().delete_documents_by_query(slots(forked.fields, 0, first_slot - 1))
                forked._has_changes = True
        if self.last_slot > last_slot:
            forked.cut(last_slot)
        forked.commit(through)
        forked.close_writer()
        with tantivy_failures():
            os.rename(made, path)

    def commit(self, through: int) -> None:
        """Make what was written durable and visible, and note that it holds everything through this seqno."""
        if self._has_changes and self._writer is not None:
            with tantivy_failures():
                try:
                    self._writer.commit()
                    self._index.reload()
                except BaseException:
                    self._drop_writer()
                    raise
            self.statistics = self._statistics_now(through)
            self._has_changes, self._uncommitted = False, set()
            if self._cut_at is not None:
                self.last_slot, self._cut_at = self._cut_at, None
        self._write_sidecar(through)
        self.indexed_through = through

    def segments(self) -> list[Segment]:
        """The segments as of the last commit or merge; searches may see older ones until `close_writer`."""
        sizes: Counter[str] = Counter()
        with tantivy_failures(), os.scandir(self.path / _SEGMENTS) as files:
            for file in files:
                with suppress(FileNotFoundError):  # A merge may have ended.
                    sizes[file.name.partition(".")[0]] += file.stat().st_size
            return parse_segments((self.path / _SEGMENTS / _META).read_bytes(), sizes)

    def holds(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether searches see a document with each of these keys."""
        with tantivy_failures():
            queries = [tantivy.Query.term_query(self.fields, KEY, key_text(key), "basic") for key in keys]
            return [bool(self.searcher().search(query, 1, count=False).hits) for query in queries]

    def rewrite(self, documents: Iterable[tuple[bytes, bytes, int]]) -> None:
        """Write documents again that the index holds: (key, value, expires_at_ms), all as they are. They become one segment.

        Searches see no difference, and go on in the segments that they have. There must be no changes without a commit.
        """
        assert not self._has_changes, "they would be committed with it"
        builder = DocumentBuilder(self.schema, self._slot_of, NO_MISFITS)  # What does not fit has been counted.
        with tantivy_failures():
            writer = self._open_writer()
            try:
                for key, value, expires_at_ms in documents:
                    document = builder.build(key, value, expires_at_ms)
                    if document is not None:
                        writer.delete_documents_by_term(KEY, key_text(key))
                        writer.add_document(document)
                writer.commit()
            except BaseException:
                self._drop_writer()
                raise

    def discard_changes(self) -> None:
        """Forget what was written since the last commit."""
        self._drop_writer()

    def close_writer(self) -> None:
        """Free the writer's memory; the next write opens another."""
        writer, self._writer = self._writer, None
        self._has_changes, self._cut_at, self._uncommitted = False, None, set()
        if writer is not None:
            with tantivy_failures():
                writer.wait_merging_threads()
                self._index.reload()  # searches go on in the merged segments
            self.statistics = self._statistics_now(self.statistics.generation)

    def _document(self, key: bytes, change: tuple[bytes, int] | None) -> tantivy.Document | None:
        if change is None:
            return None
        try:
            return self._builder.build(key, change[0], change[1])
        except Exception as error:
            # Writes are validated before they enter the log. If one slipped through, it alone must be missing from searches:
            # an index that stops at it would never see the writes behind it.
            logger.error("document cannot be indexed", index=self.path.name, key=key, error=str(error))
            return None

    def _open_writer(self) -> tantivy.IndexWriter:
        if self._writer is None:
            self._writer = self._index.writer(WRITER_HEAP_BYTES, num_threads=1)
            self._index.reload()  # Should a commit have failed after all was written: what it holds must be known.
        return self._writer

    def _drop_writer(self) -> None:
        """Close without a commit. The lock on the folder goes with the last reference."""
        self._writer = None
        self._cut_at = None
        self._has_changes = False
        self._uncommitted = set()

    def _may_be_uncommitted(self, key: bytes) -> bool:
        return self._uncommitted is None or key in self._uncommitted

    def _note_uncommitted(self, keys: Iterable[bytes]) -> None:
        if self._uncommitted is not None:
            self._uncommitted.update(keys)
            if len(self._uncommitted) > UNCOMMITTED_MAX:
                self._uncommitted = None

    def _write_sidecar(self, through: int) -> None:
        content: dict[str, object] = {"format": FORMAT, "schema": schema_digest(self.schema), "indexed_through": through}
        content |= {"last_slot": self.last_slot, "misfits": dict(self._builder.misfits)}
        temporary = self.path / f"{_SIDECAR}.new"
        with tantivy_failures():
            temporary.write_text(json.dumps(content))
            os.replace(temporary, self.path / _SIDECAR)


def remove_index(path: Path) -> None:
    """Remove an index folder, if it is there; the sidecar first, so that a half removed index is never taken for a whole."""
    with tantivy_failures():
        if path.is_dir() and not path.is_symlink():
            (path / _SIDECAR).unlink(missing_ok=True)
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read_sidecar(path: Path, schema: Schema) -> tuple[int, int, dict[str, int]]:
    """(indexed_through, last_slot, misfits)."""
    try:
        content = json.loads(path.read_bytes())
        found = (content["format"], content["schema"])
        through, last_slot = content["indexed_through"], content.get("last_slot")
        misfits = {str(name): int(count) for name, count in content.get("misfits", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexFailed(f"the sidecar cannot be read: {error}", is_damage=True) from error
    is_sound = type(through) is int and through >= 0 and type(last_slot) is int
    if found != (FORMAT, schema_digest(schema)) or not is_sound:
        raise IndexFailed("the index was built for another schema or by another version", is_damage=True)
    return through, last_slot, misfits

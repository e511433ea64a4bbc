"""At least 100,000 real texts that every machine with a Python has: docstrings, comments, and sections of manual pages.

Half of them are docstrings and comments of the installed sources. Manual pages give the other half, section by section; where
they are missing or too few, the rest of the docstrings follow, and then the paragraphs of all of these. No text comes twice,
and the same installation gives the same texts in the same order.
"""

import gzip
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvshard.cli import pydocs

TEXTS: Final = 100_000
"""Of a whole corpus."""

MANUALS: Final = Path("/usr/share/man")
"""Where Linux and BSD keep their manual pages."""

TEXT_MAX_CHARS: Final = 4_000
"""Of one text: a few sections list hundreds of options; cut here they still are the longest texts by far."""

SECTION_MIN_WORDS: Final = 6
"""Shorter sections name an author or a version only."""

SCHEMA: Final = {"name": "text", "doc": "text", "kind": "keyword", "source": "keyword", "words": "integer"}
"""Of the collection that holds the corpus. kind: of Python's definitions, or "manual"; source: top package, or section."""

_ESCAPES: Final = re.compile(r"\\(?:f(?:\[[^]]*\]|\(..|.)|s[-+]?\d+|\*(?:\[[^]]*\]|\(..|.)|[&|^%/,:])")
_SPECIAL: Final = re.compile(r"\\(?:\((..)|\[([^]]*)\]|(.))")
_CHARACTERS: Final = {
    "aq": "'",
    "dq": '"',
    "em": "-",
    "en": "-",
    "bu": "",
    "lq": '"',
    "rq": '"',
    "oq": "'",
    "cq": "'",
    "rs": "\\",
}
_TEXT_MACROS: Final = frozenset({"B", "I", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "SB", "Nm", "Nd", "Fl", "Ar"})
"""Macros whose arguments are text that is read; of an indented paragraph (IP) only the first one is."""

_PARAGRAPH_MACROS: Final = frozenset({"PP", "P", "LP", "Pp", "TP"})
_FIRST_ARGUMENT: Final = re.compile(r'"([^"]*)"|(\S+)')


@dataclass(frozen=True, slots=True)
class Text:
    """A document of the corpus. origin: "docstring" (or comment), "manual section" or "paragraph"."""

    key: str
    origin: str
    document: dict[str, object]


def corpus(count: int = TEXTS, manuals: Path = MANUALS, roots: Iterable[Path] | None = None) -> list[Text]:
    """The first `count` texts; fewer only if the machine has no more. roots: see `pydocs.documents`."""
    distinct = _distinct(_all_texts(count // 2, manuals, roots))
    return list(itertools.islice(distinct, count))


def origins(texts: Iterable[Text]) -> str:
    """How many texts came from where, as text."""
    counts = Counter(text.origin for text in texts)
    return ", ".join(f"{number:,} {origin}s" for origin, number in counts.most_common())


def _all_texts(half: int, manuals: Path, roots: Iterable[Path] | None) -> Iterator[Text]:
    python = _python_texts(roots)
    seen = []
    for text in itertools.islice(_distinct(python), half):
        seen.append(text)
        yield text
    for text in itertools.chain(_manual_texts(manuals), python):
        seen.append(text)
        yield text
    for text in seen:
        yield from _paragraphs(text)


def _distinct(texts: Iterable[Text]) -> Iterator[Text]:
    known: set[str] = set()
    for text in texts:
        doc = str(text.document["doc"])
        if doc not in known:
            known.add(doc)
            yield text


def _python_texts(roots: Iterable[Path] | None) -> Iterator[Text]:
    everything = 10_000_000  # Definitions: more than any installation has.
    for key, found in pydocs.documents(everything, roots):
        doc = str(found["doc"])
        if doc:
            yield _text(key, "docstring", f"{found['module']} {found['name']}", doc, str(found["kind"]), str(found["package"]))


def _text(key: str, origin: str, name: str, doc: str, kind: str, source: str) -> Text:
    doc = doc[:TEXT_MAX_CHARS]
    document: dict[str, object] = {"name": name, "doc": doc, "kind": kind, "source": source, "words": len(doc.split())}
    return Text(key, origin, document)


def _paragraphs(text: Text) -> Iterator[Text]:
    parts = [part.strip() for part in str(text.document["doc"]).split("\n\n")]
    for number, part in enumerate(parts if len(parts) > 1 else [], start=1):
        if len(part.split()) >= SECTION_MIN_WORDS:
            document = text.document | {"doc": part, "words": len(part.split())}
            yield Text(f"{text.key}/{number}", "paragraph", document)


def _manual_texts(root: Path) -> Iterator[Text]:
    """Sections of the English pages."""
    for path in _manual_pages(root):
        page = path.name.removesuffix(".gz")
        name, _, section = page.rpartition(".")
        try:
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (OSError, EOFError):  # A dangling link, or a damaged page.
            continue
        for number, (heading, doc) in enumerate(manual_sections(raw.decode("utf-8", "replace")), start=1):
            if len(doc.split()) >= SECTION_MIN_WORDS:
                yield _text(f"man:{page}/{number}", "manual section", f"{name} {heading.lower()}", doc, "manual", section)


def _manual_pages(root: Path) -> list[Path]:
    """First one page of each program, by name, then the second of those that have more, and so on.

    A program with thousands of nearly equal pages, one for each of its commands, must not be half of the corpus.
    """
    nth: Counter[str] = Counter()
    order: list[tuple[int, str, Path]] = []
    for path in sorted(root.glob("man[1-9]*/*")):
        program = re.split(r"[-_.:]", path.name, maxsplit=1)[0]
        nth[program] += 1
        order.append((nth[program], path.name, path))
    return [path for _, _, path in sorted(order)]


def manual_sections(source: str) -> Iterator[tuple[str, str]]:
    """(heading, text) of the sections of a page in roff, macros and font changes taken out."""
    heading, lines = "", list[str]()
    for line in source.splitlines():
        if line.startswith((".SH", ".Sh")):
            if heading:
                yield heading, "\n".join(lines).strip()
            heading, lines = _plain(line[3:]).strip().strip('"'), []
        elif line.startswith((".", "'")):
            macro, _, arguments = line[1:].partition(" ")
            if macro in _TEXT_MACROS and arguments:
                lines.append(_plain(arguments).replace('"', ""))
            elif macro == "IP" and (match := _FIRST_ARGUMENT.match(arguments)):
                lines += ["", _plain(match.group(1) or match.group(2) or "")]
            elif macro in _PARAGRAPH_MACROS:
                lines.append("")
        elif heading:
            lines.append(_plain(line))
    if heading:
        yield heading, "\n".join(lines).strip()


def _plain(line: str) -> str:
    return _SPECIAL.sub(_character, _ESCAPES.sub("", line))


def _character(match: re.Match[str]) -> str:
    name = match.group(1) or match.group(2)
    if name is not None:
        return _CHARACTERS.get(name, "")
    return {"-": "-", "e": "\\", " ": " ", "~": " ", "'": "'", "`": "`"}.get(match.group(3), "")

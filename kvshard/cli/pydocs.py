"""Real texts to try kvshard with: the documentation of every module this Python has, read from the sources.

May live here: finding source files, parsing them with `ast`, and turning definitions into documents. Nothing is imported, no
file is written, and the same installation gives the same documents in the same order.
"""

import ast
import importlib.util
import itertools
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SCHEMA = {
    "module": "keyword",
    "package": "keyword",
    "name": "text",
    "kind": "keyword",
    "signature": "text",
    "doc": "text",
    "length": "integer",
    "is_public": "boolean",
    "line": "integer",
}
"""Schema of the collection that these documents fit."""

SOURCE_MAX_BYTES = 2 * 1024 * 1024
"""Larger sources are generated tables: parsing one takes over a second and hundreds of megabytes, for hardly any text."""

COMMENT_MIN_WORDS = 4
"""Shorter comments ("# noqa", "# XXX fix") are marks for tools, not texts."""

_TEST_FOLDERS = frozenset({"test", "tests", "idle_test", "_test", "testing_data"})
_COMMENT = re.compile(r"^\s*#[:!]?\s?(.*)$")

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A source file and the module it holds."""

    module: str
    path: Path

    @property
    def is_test(self) -> bool:
        """The file belongs to somebody's test suite."""
        return not _TEST_FOLDERS.isdisjoint(self.module.split("."))


@dataclass(frozen=True, slots=True)
class Documentation:
    """One definition. doc: its docstring, or else the comments written on it, or else nothing (is_documented says which)."""

    module: str
    name: str
    kind: str
    signature: str
    doc: str
    line: int
    is_documented: bool

    @property
    def key(self) -> str:
        """`module:qualified.name`; not unique where a source defines a name twice."""
        return f"{self.module}:{self.name}" if self.kind != "module" else f"{self.module}:"

    @property
    def is_public(self) -> bool:
        """No part of its path begins with an underscore, "__special__" names excepted."""
        parts = [*self.module.split("."), *self.name.split(".")]
        return all(not part.startswith(("_", "<")) or (part.startswith("__") and part.endswith("__")) for part in parts)

    def document(self) -> dict[str, object]:
        """The JSON object to store."""
        return {
            "module": self.module,
            "package": self.module.partition(".")[0],
            "name": self.name,
            "kind": self.kind,
            "signature": self.signature,
            "doc": self.doc,
            "length": len(self.doc),
            "is_public": self.is_public,
            "line": self.line,
        }


def source_roots() -> list[Path]:
    """Folders that hold the sources of this Python: standard library first, then installed packages."""
    paths = sysconfig.get_paths()
    installed = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    roots = [Path(entry) for entry in (paths["stdlib"], paths["purelib"], paths["platlib"], *installed)]
    return [root for root in dict.fromkeys(root.resolve() for root in roots) if root.is_dir()]


def source_files(root: Path) -> Iterator[SourceFile]:
    """Every module under a root, by name, those of a folder before those of its packages.

    A stub (.pyi) counts where a module has no source of its own.
    """
    for folder, folders, files in os.walk(root):
        # What is no identifier ("x.dist-info", "config-3.11") cannot be imported, and site-packages is a root of its own.
        folders[:] = sorted(name for name in folders if name.isidentifier() and name != "__pycache__")
        prefix = list(Path(folder).relative_to(root).parts)
        names = set(files)
        for name in sorted(names):
            stem, extension = os.path.splitext(name)
            is_source = extension == ".py" or (extension == ".pyi" and f"{stem}.py" not in names)
            if is_source and stem.isidentifier() and stem != "__main__":
                parts = prefix if stem == "__init__" else [*prefix, stem]
                if parts:
                    yield SourceFile(".".join(parts), Path(folder, name))


def read_source(source: SourceFile) -> list[Documentation]:
    """The definitions of one file; none where it cannot be read or is no Python of this version."""
    try:
        if source.path.stat().st_size > SOURCE_MAX_BYTES:
            return []
        text = importlib.util.decode_source(source.path.read_bytes())
    except (OSError, ValueError, SyntaxError):  # Unreadable, or in an encoding that its first lines do not declare.
        return []
    return parse_source(text, source.module)


def parse_source(text: str, module: str) -> list[Documentation]:
    """The definitions in a module's text, in order of line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Old escapes in other people's sources are not the user's concern.
            tree = ast.parse(text)
        lines = text.split("\n")  # Not splitlines: it also breaks at form feeds, which `ast` does not count.
        found = sorted(_definitions(tree, module), key=lambda each: _line(each[0]))
        return [_documentation(node, name, kind, module, lines) for node, name, kind in found]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _definitions(tree: ast.Module, module: str) -> Iterator[tuple[Definition, str, str]]:
    """Every definition with its qualified name and kind, in no order."""
    yield tree, module, "module"
    pending: list[tuple[ast.AST, str, bool]] = [(tree, "", False)]
    while pending:
        parent, prefix, in_class = pending.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef):
                yield node, prefix + node.name, "class"
                pending.append((node, f"{prefix}{node.name}.", True))
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node, prefix + node.name, "method" if in_class else "function"
                pending.append((node, f"{prefix}{node.name}.<locals>.", False))
            elif isinstance(node, (ast.If, ast.Try, ast.With, ast.For, ast.While, ast.ExceptHandler)):
                pending.append((node, prefix, in_class))


def _documentation(node: Definition, name: str, kind: str, module: str, lines: list[str]) -> Documentation:
    docstring = ast.get_docstring(node)
    text = docstring or ("" if isinstance(node, ast.Module) else _comments(node, lines))
    return Documentation(
        module=module,
        name=name,
        kind=kind,
        signature=_signature(node, name),
        doc=text.encode("utf-8", "replace").decode("utf-8"),  # A lone surrogate in a docstring has no UTF-8 form.
        line=max(1, _line(node)),
        is_documented=bool(docstring),
    )


def _line(node: Definition) -> int:
    return 0 if isinstance(node, ast.Module) else node.lineno  # 0: also before a definition in the first line.


def _signature(node: Definition, name: str) -> str:
    match node:
        case ast.Module():
            return f"import {name}"
        case ast.ClassDef():
            bases = ", ".join(ast.unparse(base) for base in [*node.bases, *node.keywords])
            return f"class {node.name}({bases})" if bases else f"class {node.name}"
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            return f"{keyword} {node.name}({ast.unparse(node.args)}){returns}"


def _comments(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """The comment block above a definition and the whole-line comments in it (of a class: only before its first statement)."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    start = first - 1
    while start > 0 and lines[start - 1].lstrip().startswith("#"):
        start -= 1
    end = node.body[0].lineno - 1 if isinstance(node, ast.ClassDef) else (node.end_lineno or node.lineno)
    found = (match.group(1).strip() for line in lines[start:end] if (match := _COMMENT.match(line)))
    text = "\n".join(found).strip()
    return text if len(text.split()) >= COMMENT_MIN_WORDS else ""


def documents(count: int, roots: Iterable[Path] | None = None) -> Iterator[tuple[str, dict[str, object]]]:
    """Up to count (key, document) pairs, keys unique.

    Docstrings come first, standard library before packages. Only where they are fewer than count do definitions follow that
    have comments instead, then those in test suites, and last those that have a signature alone.
    """
    keys: dict[str, int] = {}
    return itertools.islice(
        ((_unique(item.key, keys), item.document()) for item in _by_preference(roots or source_roots())), max(0, count)
    )


def _by_preference(roots: Iterable[Path]) -> Iterator[Documentation]:
    roots = list(roots)
    bare: list[Documentation] = []
    for is_test in (False, True):
        commented: list[Documentation] = []
        sources = (source for root in roots for source in source_files(root) if source.is_test == is_test)
        for item in itertools.chain.from_iterable(map(read_source, sources)):
            if item.is_documented:
                yield item
            elif item.kind != "module":  # A module's comments are mostly its license.
                (commented if item.doc else bare).append(item)
        yield from commented
    yield from bare


def _unique(key: str, keys: dict[str, int]) -> str:
    """The key, with "#2", "#3" where it was given out before: overloads, setters, definitions in both arms of an if."""
    keys[key] = keys.get(key, 0) + 1
    return key if keys[key] == 1 else f"{key}#{keys[key]}"

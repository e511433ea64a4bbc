"""Generated code is what the protos say, and every field of them is documented."""

import importlib.util
import itertools
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_generated_code_is_current(tmp_path: pathlib.Path) -> None:
    spec = importlib.util.spec_from_file_location("generate_protos", ROOT / "scripts" / "generate_protos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(tmp_path)
    packages = ("kvshard/v1", "kvshard/coordination/v1")
    fresh = {f"{package}/{path.name}": path.read_text() for package in packages for path in (tmp_path / package).iterdir()}
    checked_in = {
        f"{package}/{path.name}": path.read_text() for package in packages for path in (ROOT / package).glob("*_pb2*")
    }
    assert fresh
    assert sorted(fresh) == sorted(checked_in)
    stale = [name for name in fresh if fresh[name] != checked_in[name]]
    assert not stale, f"run 'make protos' and commit: {stale}"


def test_every_message_field_and_method_is_documented() -> None:
    for path in sorted((ROOT / "protos").rglob("*.proto")):
        lines = [line.strip() for line in path.read_text().splitlines()]
        body = lines[next(i for i, line in enumerate(lines) if line.startswith("package ")) + 1 :]
        for before, line in itertools.pairwise(body):
            is_declaration = line.startswith(("message ", "enum ", "service ", "rpc ", "oneof ")) or (
                " = " in line and line.endswith(";") and not line.startswith("//")
            )
            assert not is_declaration or before.startswith("//"), f"{path.name}: no comment above {line!r}"

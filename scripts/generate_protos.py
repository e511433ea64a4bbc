"""Generate kvshard/v1/ from protos/: messages, gRPC stubs and their types.

Run it without arguments after a change of a .proto file; the test suite runs it into a temporary folder
and compares, so a forgotten run cannot land.
"""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def generate(target: pathlib.Path) -> None:
    """Write the generated modules below target (they land in target/kvshard/v1/).

    Raises subprocess.CalledProcessError when protoc refuses a file; its message is on standard error.
    """
    sources = sorted(str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos").rglob("*.proto"))
    bin_dir = pathlib.Path(sys.executable).parent
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "--proto_path=protos",
        f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
        *sources,
    ]
    subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    generate(ROOT)

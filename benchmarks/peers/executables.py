"""Where the peers' programs are: in a folder that the environment names, on PATH, or unpacked from Debian's packages.

Unpacking needs neither root nor an installation: `apt-get download` and `dpkg -x` into the project's cache.
"""

import os
import pathlib
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.measured import Absent

FOLDER_VARIABLE = "KVSHARD_BENCH_PEERS"
"""Environment variable with a folder that holds the programs, or an unpacked system with them in usr/bin."""

CACHE = pathlib.Path(__file__).resolve().parents[2] / ".cache" / "peers"
"""What `fetch` fills; `make clean` leaves it alone, since it does not change."""

PACKAGES: Mapping[str, str] = {
    "redis-server": "redis-server",
    "redis-benchmark": "redis-tools",
    "nutcracker": "nutcracker",
    "etcd": "etcd-server",
}
"""Which Debian package each program is in. The programs of redis-server are links into those of redis-tools."""

FETCH_TIMEOUT_S = 120.0
"""Of one step: the largest package has 10 MB."""

_BIN_FOLDERS = ("", "bin", "usr/bin", "usr/sbin", "usr/local/bin")
_LIBRARY_PATTERNS = ("lib/*-linux-gnu", "usr/lib/*-linux-gnu")


@dataclass(frozen=True, slots=True)
class Executable:
    """A program, and what it needs in its environment to find its libraries."""

    name: str
    path: pathlib.Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """What it says of itself, first line; empty when it says nothing."""
        flag = "-V" if self.name == "nutcracker" else "--version"
        ran = subprocess.run(
            [str(self.path), flag], env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        return next(iter((ran.stdout or ran.stderr).strip().splitlines()), "")


def find(name: str, cache: pathlib.Path = CACHE) -> Executable | Absent:
    """The program of that name, from the first place that has it."""
    named = os.environ.get(FOLDER_VARIABLE, "")
    if named and (found := _in(pathlib.Path(named), name)):
        return found
    if on_path := shutil.which(name):
        return Executable(name, pathlib.Path(on_path))
    if found := _in(cache, name):
        return found
    return Absent(name, f"no {name} in ${FOLDER_VARIABLE}, on PATH, or fetched by `make bench-peers`")


def _in(root: pathlib.Path, name: str) -> Executable | None:
    for folder in _BIN_FOLDERS:
        path = root / folder / name
        if path.is_file() and os.access(path, os.X_OK):
            return Executable(name, path, _library_environment(root))
    return None


def _library_environment(root: pathlib.Path) -> dict[str, str]:
    folders = [str(folder) for pattern in _LIBRARY_PATTERNS for folder in sorted(root.glob(pattern))]
    if not folders:
        return {}
    return {"LD_LIBRARY_PATH": os.pathsep.join([*folders, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])}


def fetch(cache: pathlib.Path = CACHE) -> str:
    """Unpack the packages of what `find` does not find. Returns why that failed, or an empty text."""
    wanted = sorted({package for name, package in PACKAGES.items() if isinstance(find(name, cache), Absent)})
    if not wanted:
        return ""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        return f"no apt-get and dpkg to fetch {', '.join(wanted)} with"
    if "redis-server" in wanted and "redis-tools" not in wanted:
        wanted.append("redis-tools")
    packages = cache / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    try:
        _download(wanted, packages)
        for package in sorted(packages.glob("*.deb")):
            _run("dpkg", "-x", str(package), str(cache))
    except (OSError, subprocess.SubprocessError) as error:
        output = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        return f"{' '.join(wanted)} cannot be fetched: {(output or str(error)).strip()[-300:]}"
    return ""


def _download(packages: list[str], folder: pathlib.Path) -> None:
    """Packages and the libraries they need. Raises CalledProcessError when one cannot be had, by a new list neither."""
    try:
        _run("apt-get", "--quiet", "download", *packages, *_libraries(packages), folder=folder)
    except subprocess.CalledProcessError:  # This machine has no list of packages yet, or an old one.
        _run("apt-get", "--quiet", "update")
        _run("apt-get", "--quiet", "download", *packages, *_libraries(packages), folder=folder)


def _libraries(packages: list[str]) -> list[str]:
    """The libraries that these packages need and the system has not installed."""
    names = dependencies(_run("apt-cache", "depends", *packages))
    return [name for name in names if not _is_installed(name)]


def dependencies(listing: str) -> list[str]:
    """The libraries in what `apt-cache depends` prints; virtual ones, in angle brackets, cannot be downloaded."""
    found = []
    for line in listing.splitlines():
        relation, _, name = line.strip().partition(": ")
        if relation.lstrip("|") in ("Depends", "PreDepends") and name.startswith("lib"):
            found.append(name)
    return sorted(set(found))


def _is_installed(package: str) -> bool:
    ran = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status}", package], capture_output=True, text=True, check=False
    )
    return ran.stdout == "installed"


def _run(*command: str, folder: pathlib.Path | None = None) -> str:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=True)
    return ran.stdout

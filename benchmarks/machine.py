"""What a run ran on: figures mean nothing without it."""

import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Iterable

_CPU_INFO = pathlib.Path("/proc/cpuinfo")


def machine(packages: Iterable[str]) -> dict[str, str]:
    """The machine, the Python, and the versions of these packages, as far as they are installed."""
    return {
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
    }


def _processor() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

"""What a run leaves: a table of every comparison, JSON with all blocks, and a picture if matplotlib is there."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table

from benchmarks.measured import Comparison, Measured

NOISE_CORES = 0.15
"""Of processes that belong to no arm: above it the figures are those of a machine that somebody else uses too."""


def show_comparison(compared: Comparison) -> None:
    """Print one comparison: rates, and where the processor time went."""
    table = Table("arm", compared.unit, "blocks", "processor us by operation", "cores", "n", title=compared.title)
    for arm in compared.arms.values():
        spread = f"{min(arm.rates):,.0f} to {max(arm.rates):,.0f}"
        name = _name(arm)
        table.add_row(name, f"{arm.rate:,.0f}", spread, _microseconds(arm), _cores(arm), f"{arm.operations:,}")
    for each in compared.absent:
        table.add_row(each.name, "missing", "", each.why, "", "")
    Console(width=max(150, Console().width)).print(table)
    noise = max((arm.others for arm in compared.arms.values()), default=0.0)
    if noise > NOISE_CORES:
        print(f"note: other processes kept {noise:.2f} cores busy meanwhile")


def _name(arm: Measured) -> str:
    remarks = [arm.setting] if arm.setting else []
    if arm.refused:
        remarks.append(f"{arm.refused:,} calls refused")
    return f"{arm.name} ({', '.join(remarks)})" if remarks else arm.name


def _microseconds(arm: Measured) -> str:
    by_role = arm.processor_us()
    parts = " + ".join(f"{role} {value:,.2f}" for role, value in by_role.items())
    return f"{sum(by_role.values()):,.2f} = {parts}" if len(by_role) > 1 else parts


def _cores(arm: Measured) -> str:
    return ", ".join(f"{role} {cores:.2f}" for role, cores in arm.cores().items())


def write(setting: Mapping[str, object], found: Mapping[str, Comparison], target: pathlib.Path) -> None:
    """Write `target`.json, and `target`.svg if it can be drawn; says where they are, or why there is no picture."""
    target.parent.mkdir(parents=True, exist_ok=True)
    record = {"setting": dict(setting), "comparisons": {name: each.as_record() for name, each in found.items()}}
    written = [target.with_suffix(".json")]
    written[0].write_text(json.dumps(record, indent=2) + "\n")
    if find_spec("matplotlib") is None:
        print("no picture: matplotlib is not installed, the bench extra has it")
    elif found:
        written.append(target.with_suffix(".svg"))
        written[1].write_text(_picture(list(found.values())))
    print(f"written to {' and '.join(map(str, written))}")


def _picture(found: Sequence[Comparison]) -> str:
    from benchmarks.drawing import standalone
    from benchmarks.picture import comparisons

    return standalone(comparisons(found))

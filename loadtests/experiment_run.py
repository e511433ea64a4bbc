"""One experiment under way: its cells take turns on a cluster, there and back (ABBA), each block with a warm-up."""

import asyncio
import random
import time
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import AsyncExitStack

from kvshard import Client, KvShardError
from loadtests.arrivals import Arrival, Steady, schedule
from loadtests.bench import REPLICAS, Bench, Log, put_garbage_away
from loadtests.calibration import Calibration, full_rate, roomy_rate
from loadtests.control import DirectCaller
from loadtests.injection import in_force
from loadtests.openloop import OpenLoop
from loadtests.plan import SETTLE_S, WARM_UP_S, Plan, seconds_of
from loadtests.prediction import add_predictions, choices_of, timed_call
from loadtests.reference import Reference
from loadtests.results import CellResult, ExperimentResult, ExtraPoint
from loadtests.scenarios import DIRECT_NONE, NONE, Cell, Experiment, kinds_of
from loadtests.tally import Tally
from loadtests.usage import OTHERS_MAX, Usage
from loadtests.workloads import WORKLOADS, ReadCall

POLL_S = 1.0
"""Between two looks at the router's counters."""

REFERENCE_PART = 0.5
"""Of a block's length, for a reference block: there is one of each choice before and after every turn of the cells, so that it
meets what they meet, the machine's moods among it."""

SLEEPS = 30
"""For the mean of what an injected delay takes: timers are late by up to a millisecond; it is known within a tenth of one."""

STATUS_TIMEOUT_S = 2.0
FIRST_LEAF = "leaf-1"
"""The one that is slow where only one is."""


class _Counters:
    """The router's counters, read once a second while a block runs."""

    def __init__(self, client: Client[str], caller: DirectCaller | None) -> None:
        self.points: list[tuple[float, int]] = []
        self._first_attempts: list[tuple[int, int]] = []
        self._client = client
        self._caller = caller

    async def read(self, at: float) -> None:
        """Note the hedges sent so far, at that many seconds of the block."""
        if self._caller is not None:
            self.points.append((at, self._caller.hedges))
            return
        try:
            tail = (await self._client.status(timeout=STATUS_TIMEOUT_S)).tail
        except KvShardError:
            return  # Overload may shed this too: the next look counts for both intervals.
        if tail is None:
            return
        self.points.append((at, tail.hedges_total))
        asked = {leaf.leaf: leaf.first_attempts for leaf in tail.leaves}
        self._first_attempts.append((asked.get(FIRST_LEAF, 0), sum(asked.values())))

    def slow_leaf_share(self) -> float | None:
        """Of the first attempts between the first look and the last, the part that the first leaf got; None: unknown."""
        if not self._first_attempts:
            return None
        (before, all_before), (after, all_after) = self._first_attempts[0], self._first_attempts[-1]
        return (after - before) / (all_after - all_before) if all_after > all_before else None

    async def poll(self, loop: OpenLoop, first_s: float, last_s: float) -> None:
        """Read from first_s to last_s of the loop's time."""
        at = first_s
        while True:
            await asyncio.sleep(max(0.0, loop.started_at + at - time.monotonic()))
            await self.read(time.monotonic() - loop.started_at)
            if at >= last_s:
                return
            at = min(last_s, at + POLL_S)


class ExperimentRun:
    """One experiment under way."""

    def __init__(self, bench: Bench, experiment: Experiment, plan: Plan, log: Log) -> None:
        self._bench = bench
        self._experiment = experiment
        self._plan = plan
        self._log = log
        self._rng = random.Random(f"{plan.seed}:{experiment.name}")
        self._kinds = kinds_of(experiment)
        self._caller: DirectCaller | None = None
        self._references = {choice: Reference(tuple(bench.fleet.names)) for choice in choices_of(experiment)}

    async def run(self) -> ExperimentResult:
        """Calibrate, and measure every cell."""
        experiment = self._experiment
        async with AsyncExitStack() as stack:
            if any(cell.arm.control for cell in experiment.cells):
                direct = DirectCaller(await self._bench.client.map(), self._bench.corpus)
                self._caller = await stack.enter_async_context(direct)
            found = await self._calibrate()
            if self._caller is not None:
                self._caller.rate = found.rate
            self._log(
                f"{experiment.name}: {found.rate:,.0f} requests/s take {found.usage.own:.0%} of the processors "
                f"(others: {found.usage.others:.0%}), a lone leg {found.leg_p50_s * 1e3:.2f} ms at the median"
            )
            if found.usage.others > OTHERS_MAX:
                self._log("  the machine is busy with something else: these figures will not be worth much")
            results = [
                CellResult(
                    cell.condition.name, cell.condition.title, cell.arm.name, cell.arm.title, Tally(experiment.deadline_s)
                )
                for cell in experiment.cells
            ]
            pairs = list(zip(experiment.cells, results, strict=True))
            rounds = self._plan.rounds_of(experiment, found.rate)
            references_s = (2 * rounds + 1) * len(self._references) * REFERENCE_PART * experiment.block_s
            minutes = (seconds_of(experiment, rounds) + references_s) / 60
            self._log(f"  {2 * rounds} blocks of each of {len(pairs)} cells: {minutes:.1f} minutes")
            await self._time_sleeps(found.leg_p50_s)
            await self._reference_blocks(found)
            for _ in range(rounds):
                for turn in (pairs, pairs[::-1]):
                    for cell, result in turn:
                        await self._block(cell, result, found)
                    await self._reference_blocks(found)
        made = ExperimentResult(
            experiment.name, experiment.title, experiment.workload, found.rate, found.leg_p50_s, experiment.deadline_s,
            sorted(fan_out for fan_out, _ in experiment.fan_outs), results, list(experiment.notes),
            len(self._bench.fleet.leaves), REPLICAS, self._references,
        )  # fmt: skip
        await asyncio.to_thread(add_predictions, experiment, made, self._plan.seed)
        return made

    async def _time_sleeps(self, leg_p50_s: float) -> None:
        """What the delays take that are injected: leaves sleep for them, on an event loop like this one."""
        faults = [fault for cell in self._experiment.cells for fault in cell.condition.faults if fault.kind == "delay"]
        for wanted in {round(fault.seconds(leg_p50_s), 6) for fault in faults}:
            began = time.monotonic()
            for _ in range(SLEEPS):
                await asyncio.sleep(wanted)
            taken = (time.monotonic() - began) / SLEEPS
            for reference in self._references.values():
                reference.slept[wanted] = taken

    async def _reference_blocks(self, found: Calibration) -> None:
        """See `reference`: the same legs a second as in the cells, all of them of requests to every shard."""
        experiment = self._experiment
        widest = max(fan_out for fan_out, _ in experiment.fan_outs)
        weights = sum(weight for _, weight in experiment.fan_outs)
        rate = found.rate * sum(fan_out * weight for fan_out, weight in experiment.fan_outs) / weights / widest
        bench, deadline_s = self._bench, max(experiment.deadline_s, 1.0)
        for choice, reference in self._references.items():
            arrivals = schedule(Steady(rate, REFERENCE_PART * experiment.block_s), [(str(widest), 1.0)], self._rng)
            call = timed_call(bench.client, bench.corpus, experiment.workload, choice, reference, deadline_s)
            put_garbage_away()
            await OpenLoop(arrivals, call, deadline_s=deadline_s).run()

    async def _calibrate(self) -> Calibration:
        kinds = self._kinds if any(kind == "1" for kind, _ in self._kinds) else [*self._kinds, ("1", 0.05)]
        arm = DIRECT_NONE if self._caller is not None else NONE
        call = self._call(Cell(self._experiment.cells[0].condition, arm))
        find = full_rate if self._experiment.is_overload else roomy_rate
        return await find(kinds, call, self._bench.meter, self._experiment.deadline_s, self._rng)

    def _call(self, cell: Cell) -> ReadCall:
        bench, deadline_s = self._bench, self._experiment.deadline_s
        if cell.arm.control is not None:
            assert self._caller is not None, "made when an arm of the control is among the cells"
            return self._caller.call(cell.arm, deadline_s)
        return WORKLOADS[self._experiment.workload](bench.client, bench.corpus, cell.arm, deadline_s)

    async def _block(self, cell: Cell, result: CellResult, found: Calibration) -> None:
        condition = cell.condition
        warm_up = max(WARM_UP_S, condition.after_s)
        whole = warm_up + self._experiment.block_s
        arrivals = schedule(Steady(found.rate * condition.load, whole), self._kinds, self._rng)
        loop = OpenLoop(arrivals, self._call(cell), deadline_s=self._experiment.deadline_s, warm_up_s=warm_up)
        counters = _Counters(self._bench.client, self._caller)
        bench = self._bench
        wasted_before = await bench.fleet.wasted_s()
        put_garbage_away()
        async with in_force(condition, bench.fleet, bench.client, seconds=whole, leg_p50_s=found.leg_p50_s) as pauses:
            usage = asyncio.create_task(self._measured_usage(warm_up, self._experiment.block_s))
            running = asyncio.create_task(loop.run())
            await asyncio.sleep(0)
            polling = asyncio.create_task(counters.poll(loop, warm_up, whole))
            try:
                tally = await running
                await polling
                result.usages.append(await usage)
            finally:
                for task in (usage, running, polling):
                    task.cancel()
                await asyncio.gather(usage, running, polling, return_exceptions=True)
        result.wasted_s = (result.wasted_s or 0.0) + await bench.fleet.wasted_s() - wasted_before
        begin, end = loop.started_at + warm_up, loop.started_at + whole
        seen = ((leaf, max(start, begin) - begin, min(stop, end) - begin) for leaf, start, stop in pauses)
        self._add(result, tally, counters, arrivals, warm_up, [each for each in seen if each[1] < each[2]])
        p99 = tally.latency((self._kinds[0][0],)).quantile(0.99) or 0.0
        extra = result.extra_part
        self._log(
            f"  {cell.name:<28} n {tally.total:>6,}  p99 {p99 * 1e3:7.2f} ms  extra {extra:.2%}  "
            f"failed {tally.failed.total() + tally.skipped}  cpu {result.usages[-1].own:.0%}"
        )
        await asyncio.sleep(SETTLE_S)

    async def _measured_usage(self, warm_up: float, seconds: float) -> Usage:
        await asyncio.sleep(warm_up)
        self._bench.meter.start()
        await asyncio.sleep(seconds)
        return self._bench.meter.stop()

    def _add(
        self,
        result: CellResult,
        tally: Tally,
        counters: _Counters,
        arrivals: Sequence[Arrival],
        warm_up: float,
        pauses: Sequence[tuple[int, float, float]],
    ) -> None:
        after_s = result.measured_s
        result.tally.append(tally, after_s)
        result.pauses = (result.pauses or []) + [(leaf, after_s + start, after_s + stop) for leaf, start, stop in pauses]
        instants = [arrival.at for arrival in arrivals]
        legs = [int(arrival.kind) for arrival in arrivals]
        sums = [0]
        for count in legs:
            sums.append(sums[-1] + count)
        for (begin, before), (end, after) in zip(counters.points, counters.points[1:], strict=False):
            asked = sums[bisect_left(instants, end)] - sums[bisect_left(instants, begin)]
            result.extra.append(ExtraPoint(after_s + (begin + end) / 2 - warm_up, asked, after - before))
            result.legs += asked
            result.hedges += after - before
        if (share := counters.slow_leaf_share()) is not None:
            result.slow_leaf_share.append(share)
        result.blocks += 1
        result.measured_s += self._experiment.block_s


def _empty(cell: Cell, deadline_s: float) -> CellResult:
    condition, arm = cell.condition, cell.arm
    return CellResult(condition.name, condition.title, arm.name, arm.title, Tally(deadline_s))

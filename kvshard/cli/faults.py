"""`kvshard fault ...`: make leaves slow, pause them, fail or swallow requests, and see what becomes of the service.

The cluster must have been started with --allow-faults.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from kvshard.cli.console import EXIT_OK, EXIT_UNAVAILABLE, Connect, complain, print_json, rich_console, with_client
from kvshard.errors import ErrorDetails, InvalidArgument

if TYPE_CHECKING:
    from kvshard.client.client import Client
    from kvshard.client.faults import FaultKindName, FaultMethodName, LeafFault

_CONNECT = Connect()

_SHARE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(%?)")
_LENGTH = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(us|ms|s|m|h)?")
_SECONDS = {"us": 1e-6, "ms": 1e-3, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}

_Many = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]
_Length = Annotated[str, Parameter(name=("--length", "--delay"))]
_Share = Annotated[str, Parameter(name=("--probability", "--share"))]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Where a fault happens, and for how long.

    Parameters
    ----------
    leaf
        Leaf that gets it; may be given several times. All leaves, if none is.
    duration
        It ends by itself after this long: seconds, or "500ms", "5m"; an hour at most.
    seed
        Number that repeats the same chances; any, if none is given.
    """

    leaf: _Many = ()
    duration: Annotated[str, Parameter(name="--for")] = "60s"
    seed: Annotated[int, Parameter(show_default=False)] = 0


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Which requests a fault hits.

    Parameters
    ----------
    probability
        Part of the requests that it happens to, such as "5%" or 0.05.
    method
        Only these requests: read, scan, search or write; may be given several times. All of them, if none is.
    """

    probability: _Share = "100%"
    method: _Many = ()


_SCOPE, _REQUESTS = Scope(), Requests()


def register(app: App) -> None:
    """Add the verbs to the command line."""
    group = App(
        name="fault",
        help="Make leaves misbehave for a while, to see what becomes of the service. Needs leaves with --allow-faults.",
    )
    for verb in (slow, pause, delay, error, drop, clear):
        group.command(verb)
    group.command(show, name="list")
    app.command(group)


def slow(factor: float = 10.0, *, requests: Requests = _REQUESTS, scope: Scope = _SCOPE, connect: Connect = _CONNECT) -> int:
    """Let requests take several times as long.

    Parameters
    ----------
    factor
        How many times; a request of less than 0.5 ms counts as one of 0.5 ms.
    """
    return _inject(connect, "slow", scope, requests, factor=factor)


def pause(
    *,
    share: Annotated[str, Parameter(name=("--share", "--probability"))] = "100%",
    length: _Length = "50ms",
    scope: Scope = _SCOPE,
    connect: Connect = _CONNECT,
) -> int:
    """Stop a leaf as a whole, again and again or for all of the time; only replication goes on.

    Parameters
    ----------
    share
        Part of the time that it is stopped, such as "2%"; with 100% it is stopped until the fault ends.
    length
        Length of a pause, such as "50ms" or 0.05 (seconds); of no effect with 100%.
    """
    return _inject(connect, "pause", scope, Requests(probability=share), delay=length)


def delay(length: _Length, *, requests: Requests = _REQUESTS, scope: Scope = _SCOPE, connect: Connect = _CONNECT) -> int:
    """Let requests begin later.

    Parameters
    ----------
    length
        How much later, such as "20ms" or 0.02 (seconds).
    """
    return _inject(connect, "delay", scope, requests, delay=length)


def error(*, requests: Requests = _REQUESTS, scope: Scope = _SCOPE, connect: Connect = _CONNECT) -> int:
    """Fail requests with UNAVAILABLE."""
    return _inject(connect, "error", scope, requests)


def drop(*, requests: Requests = _REQUESTS, scope: Scope = _SCOPE, connect: Connect = _CONNECT) -> int:
    """Never answer requests."""
    return _inject(connect, "drop", scope, requests)


def clear(ids: _Many = (), /, *, leaf: _Many = (), connect: Connect = _CONNECT) -> int:
    """End faults before their time.

    Parameters
    ----------
    ids
        Faults to end, as `kvshard fault list` names them; all, if none is named.
    leaf
        Leaf whose faults are to end; may be given several times. All leaves, if none is.
    """

    async def work(kv: "Client[bytes]") -> int:
        done = await kv.clear_faults(leaves=leaf, ids=ids)
        if connect.as_json:
            print_json(dataclasses.asdict(done))
        else:
            ended = f"{done.cleared} fault{'s' if done.cleared > 1 else ''} ended"
            print(ended if done.cleared else "no fault was in force")
        return _tell_silent(done.silent)

    return with_client(connect, work)


def show(*, connect: Connect = _CONNECT) -> int:
    """List the faults that are in force."""

    async def work(kv: "Client[bytes]") -> int:
        found = await kv.list_faults()
        if connect.as_json:
            print_json({"faults": [_as_json(each) for each in found.faults], "silent": found.silent})
        elif found.faults:
            _print_table(found.faults)
        else:
            print("no fault is in force")
        return _tell_silent(found.silent)

    return with_client(connect, work)


def _inject(
    connect: Connect, kind: "FaultKindName", scope: Scope, requests: Requests, *, delay: str = "0", factor: float = 0.0
) -> int:
    probability = parse_share(requests.probability, "probability")
    delay_s, duration_s = parse_length(delay, "delay"), parse_length(scope.duration, "for")
    methods: tuple[FaultMethodName, ...] = requests.method  # type: ignore[assignment]  # the service says which there are

    async def work(kv: "Client[bytes]") -> int:
        done = await kv.inject_fault(
            kind,
            leaves=scope.leaf,
            probability=probability,
            delay=delay_s,
            factor=factor,
            duration=duration_s,
            seed=scope.seed,
            methods=methods,
        )
        if connect.as_json:
            print_json({"faults": [_as_json(each) for each in done]})
        else:
            _print_table(done)
        return EXIT_OK

    return with_client(connect, work)


def parse_share(text: str, flag: str) -> float:
    """ "5%" or "0.05" as 0.05. Raises InvalidArgument naming the flag."""
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f'--{flag} is written as "5%" or 0.05, not {text!r}', ErrorDetails(field=flag))
    return float(match[1]) / (100 if match[2] else 1)


def parse_length(text: str, flag: str) -> float:
    """Seconds of "50ms", "2s", "5m" or "0.05". Raises InvalidArgument naming the flag."""
    match = _LENGTH.fullmatch(text.strip().lower())
    if match is None:
        raise InvalidArgument(f'a length of time is "50ms", "2s", "5m" or in seconds, not {text!r}', ErrorDetails(field=flag))
    return float(match[1]) * _SECONDS[match[2]]


def _as_json(each: "LeafFault") -> dict[str, object]:
    return {"leaf": each.leaf, **dataclasses.asdict(each.fault), "left_s": round(each.left_s, 3), "hits": each.hits}


def _print_table(faults: "Sequence[LeafFault]") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("leaf", "fault", "what happens", "to", "ends in", "hits", "seed"):
        table.add_column(column, justify="right" if column in ("ends in", "hits", "seed") else "left", no_wrap=True)
    for each in faults:
        what, whom = _in_words(each)
        table.add_row(each.leaf, each.fault.id, what, whom, f"{each.left_s:,.1f} s", f"{each.hits:,}", str(each.fault.seed))
    rich_console().print(table)


def _in_words(each: "LeafFault") -> tuple[str, str]:
    """What happens, and to whom."""
    fault = each.fault
    length = f"{fault.delay_s * 1000:g} ms"
    share = f"{fault.probability * 100:g} %"
    if fault.kind == "pause":
        return ("stopped", "everything") if fault.probability >= 1 else (f"pauses of {length}", f"{share} of the time")
    what = {
        "delay": f"{length} later",
        "slow": f"{fault.factor:g} times as long",
        "error": "fails: UNAVAILABLE",
        "drop": "no answer",
    }.get(fault.kind, fault.kind)
    return what, f"{share} of {', '.join(fault.methods) or 'all requests'}"


def _tell_silent(silent: Sequence[str]) -> int:
    if not silent:
        return EXIT_OK
    complain(f"no answer from {', '.join(silent)}; faults that they have end by themselves")
    return EXIT_UNAVAILABLE

"""The synchronous client offers what the asyncio client offers: the same names, arguments, defaults and results."""

import inspect
import typing
from asyncio import Future
from collections.abc import Awaitable, Coroutine

import pytest

from kvshard import sync
from kvshard.client import client, collection, keyspace, scan
from kvshard.client.results import K

PAIRS = [
    (client.Client, sync.Client),
    (collection.Collection, sync.Collection),
    (keyspace.Keyspace, sync.Keyspace),
    (scan.Scan, sync.Scan),
]

COUNTERPARTS = dict(PAIRS)

RENAMED = {"aclose": "close"}
"""What is called otherwise in a world without await."""

ADDED = {"may_block_event_loop"}
"""Arguments of the construction that only the synchronous client has."""

SET_BY_INSTANCES = {"coverage", "states", "timing"}
"""Properties that the asyncio scan has as attributes of its instances, which its class does not show."""


def public(kind: type) -> dict[str, object]:
    found = {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}
    return {RENAMED.get(name, name): member for name, member in found.items()}


def blocking(hint: object) -> object:
    """What a blocking method answers where the other one answers this: what awaiting it gives, with our own classes."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Awaitable, Coroutine, Future):
        return blocking(arguments[-1])
    if origin in COUNTERPARTS:
        return COUNTERPARTS[origin][arguments]
    return COUNTERPARTS.get(hint, hint)  # type: ignore[call-overload]


def parameters(method: object) -> list[tuple[str, object, object]]:
    return [(each.name, each.kind, each.default) for each in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize(("asynchronous", "synchronous"), PAIRS)
def test_the_same_names(asynchronous: type, synchronous: type) -> None:
    there, here = set(public(asynchronous)), set(public(synchronous))
    assert not there - here, "the synchronous client lacks them"
    assert here - there <= SET_BY_INSTANCES, "the asyncio client lacks them"


@pytest.mark.parametrize(("asynchronous", "synchronous"), PAIRS)
def test_the_same_arguments_and_results(asynchronous: type, synchronous: type) -> None:
    there, here = public(asynchronous), public(synchronous)
    for name, member in there.items():
        assert isinstance(here[name], property) == isinstance(member, property), name
        if not callable(member):
            continue
        assert not inspect.iscoroutinefunction(here[name]), f"{name} does not block"
        assert parameters(here[name]) == parameters(member), name
        expected, hints = typing.get_type_hints(member), typing.get_type_hints(here[name])
        assert hints.pop("return") == blocking(expected.pop("return")), name
        assert hints == expected, name


def test_the_same_construction() -> None:
    there, here = parameters(client.Client.__init__), parameters(sync.Client.__init__)
    assert [each for each in here if each[0] not in ADDED] == there
    hints = {name: hint for name, hint in typing.get_type_hints(sync.Client.__init__).items() if name not in ADDED}
    assert hints == typing.get_type_hints(client.Client.__init__)


def test_every_method_is_described() -> None:
    for _, synchronous in PAIRS:
        for name, member in public(synchronous).items():
            assert inspect.getdoc(member), f"{synchronous.__name__}.{name}"


def test_the_comparison_itself() -> None:
    """It must not pass because there is nothing to compare."""
    assert len(public(client.Client)) >= 20
    assert blocking(typing.get_type_hints(client.Client.collection)["return"]) == sync.Collection[K]
    assert blocking(Awaitable[client.Client]) is sync.Client
    assert blocking(Future[int]) is int
    assert blocking(int) is int
    assert public(scan.Scan).keys() >= {"close", "token"}

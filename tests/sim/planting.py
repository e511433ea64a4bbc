"""How a bug is planted: attributes are replaced for as long as a stack of contexts lives."""

import contextlib
from collections.abc import Callable
from unittest import mock

Plant = Callable[[contextlib.ExitStack], None]


def replace(stack: contextlib.ExitStack, target: object, name: str, by: object) -> None:
    """Replace an attribute."""
    stack.enter_context(mock.patch.object(target, name, by))


def replacing(target: object, name: str, by: object) -> Plant:
    """A bug that is one attribute replaced."""
    return lambda stack: replace(stack, target, name, by)

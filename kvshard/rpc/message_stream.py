"""What a lane runs over: messages in both directions, in order. gRPC streams (`grpc_stream.py`) and plain connections
(`socket_stream.py`) are such; a lane does not know which of them it has."""

import asyncio
from abc import ABC, abstractmethod
from typing import Final, Generic, Protocol, TypeVar

from kvshard.rpc.frames import Requests, Responses

InT = TypeVar("InT", Requests, Responses)
OutT = TypeVar("OutT", Requests, Responses)
ReceivedT = TypeVar("ReceivedT", bound=Requests | Responses, contravariant=True)


UNIX: Final = "unix"
TCP: Final = "tcp"
GRPC: Final = "grpc"
TRANSPORTS: Final = (UNIX, TCP, GRPC)


class Receiver(Protocol[ReceivedT]):
    """Who is told what happens to a stream. None of it may await anything."""

    def on_message(self, message: ReceivedT, /) -> None:
        """One has come."""
        ...

    def on_writable(self) -> None:
        """The stream takes a message again."""
        ...

    def on_end(self, reason: str, /) -> None:
        """Nothing comes or goes any more. Called once, the last."""
        ...


class MessageStream(ABC, Generic[InT, OutT]):
    """One stream. gone: done when nothing of it is left. transport: what it runs over, one of TRANSPORTS.

    is_writable: it takes a message now; else `on_writable` is called later. Whoever writes regardless fills the memory.
    """

    is_writable = True
    transport = ""

    def __init__(self) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @abstractmethod
    def begin(self, receiver: Receiver[InT]) -> None:
        """From now on the receiver is told. Called once."""

    @abstractmethod
    def write(self, message: OutT) -> None:
        """Hand a message over. One that is written after the end goes nowhere."""

    @abstractmethod
    def pause_reading(self) -> None:
        """Read nothing further, so that the other end is held up, until `resume_reading`. A message or two may still come."""

    @abstractmethod
    def resume_reading(self) -> None:
        """Take the pause back. Does nothing where there is none."""

    @abstractmethod
    def close(self) -> None:
        """End it when what was written is on its way."""

    @abstractmethod
    def abort(self) -> None:
        """End it now."""

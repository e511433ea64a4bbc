"""A stream of messages that keeps what is written to it."""

from kvshard.rpc.message_stream import InT, MessageStream, OutT, Receiver


class FakeStream(MessageStream[InT, OutT]):
    """written: the messages, in order. is_paused: whoever has it wants to read nothing now. receiver: is told by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[OutT] = []
        self.is_paused = False
        self.receiver: Receiver[InT] | None = None

    def __repr__(self) -> str:
        return f"FakeStream(written={len(self.written)}, is_paused={self.is_paused})"

    def begin(self, receiver: Receiver[InT]) -> None:
        """Remember it."""
        self.receiver = receiver

    def bring(self, message: InT) -> None:
        """A message has come."""
        assert self.receiver is not None
        self.receiver.on_message(message)

    def write(self, message: OutT) -> None:
        """Keep it."""
        self.written.append(message)

    def pause_reading(self) -> None:
        """Note it."""
        self.is_paused = True

    def resume_reading(self) -> None:
        """Note it."""
        self.is_paused = False

    def close(self) -> None:
        """End it."""
        self.abort()

    def abort(self) -> None:
        """End it."""
        if not self.gone.done():
            self.gone.set_result(None)
            if self.receiver is not None:
                self.receiver.on_end("ended")

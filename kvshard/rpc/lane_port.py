"""Where a process takes lanes as plain TCP connections, beside gRPC.

Pure: imports only the standard library and other pure files.
"""

from dataclasses import dataclass
from typing import Final

from kvshard.errors import ErrorDetails, InvalidArgument

PORT_MAX: Final = 65_535

NO_PORT: Final = -1
"""Lanes are gRPC streams and nothing else."""

OFF: Final = "off"


@dataclass(frozen=True, slots=True)
class LanePort:
    """port: 0 is any free one, NO_PORT none. advertised: the port that callers dial, where something stands before this one;
    0: the same. is_fronted: callers reach this process through something else, which is not to be passed by."""

    port: int = 0
    advertised: int = 0
    is_fronted: bool = False

    def check(self) -> None:
        """Raise InvalidArgument for what cannot be a port."""
        for field, value, least in (("lane-port", self.port, NO_PORT), ("advertise-lane-port", self.advertised, 0)):
            if not least <= value <= PORT_MAX:
                text = f"--{field} must be 0 to {PORT_MAX}, not {value}"
                raise InvalidArgument(text, ErrorDetails(field=field, limit=PORT_MAX))

    def shifted(self, places: int) -> "LanePort":
        """The same for a process that has its ports so many places further on, if they are not any free ones."""
        port = self.port + places if self.port > 0 else self.port
        return LanePort(port, self.advertised + places if self.advertised else 0, self.is_fronted)


ANY_PORT: Final = LanePort()


def lane_port_of(text: str) -> int:
    """The port in the text of an option; "off": NO_PORT. Raises ValueError."""
    return NO_PORT if text == OFF else int(text)


def text_of(port: int) -> str:
    """A port as the text of an option."""
    return OFF if port == NO_PORT else str(port)

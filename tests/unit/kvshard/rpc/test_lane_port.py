"""Where lanes are taken past gRPC, and the offer of it."""

import pytest

from kvshard.errors import InvalidArgument
from kvshard.rpc.lane_listener import Offer, read_offer
from kvshard.rpc.lane_port import NO_PORT, LanePort, lane_port_of, text_of

TICKET = b"0123456789abcdef" * 2


@pytest.mark.parametrize(("text", "port"), [("off", NO_PORT), ("0", 0), ("7800", 7800)])
def test_the_text_of_an_option(text: str, port: int) -> None:
    assert lane_port_of(text) == port
    assert text_of(port) == text


def test_a_text_that_is_no_port() -> None:
    with pytest.raises(ValueError, match="on"):
        lane_port_of("on")


@pytest.mark.parametrize(
    ("where", "field"),
    [
        (LanePort(-2), "lane-port"),
        (LanePort(65_536), "lane-port"),
        (LanePort(1, 65_536), "advertise-lane-port"),
        (LanePort(1, -1), "advertise-lane-port"),
    ],
)
def test_what_cannot_be_a_port(where: LanePort, field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"--{field}") as caught:
        where.check()
    assert caught.value.details.field == field


@pytest.mark.parametrize(
    ("where", "third"),
    [
        (LanePort(7800, 9800), LanePort(7802, 9802)),
        (LanePort(), LanePort()),
        (LanePort(NO_PORT), LanePort(NO_PORT)),
        (LanePort(7800), LanePort(7802)),
        (LanePort(7800, is_fronted=True), LanePort(7802, is_fronted=True)),
    ],
)
def test_workers_have_their_ports_one_after_the_other(where: LanePort, third: LanePort) -> None:
    where.check()
    assert where.shifted(2) == third


@pytest.mark.parametrize("offer", [Offer(7800, TICKET), Offer(7800, TICKET, "kvshard-0f")])
def test_an_offer_is_read_as_it_was_made(offer: Offer) -> None:
    assert read_offer(str(offer)) == offer
    assert read_offer(f"{offer}:of a later version") == offer
    assert read_offer(f"1:7800:{TICKET.decode()}") == Offer(7800, TICKET)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1:7800",
        "2:7800:" + TICKET.decode(),
        "1:0:" + TICKET.decode(),
        "1:65536:" + TICKET.decode(),
        "1:x:" + TICKET.decode(),
        "1:7800:short",
        "1:-1:" + TICKET.decode(),
    ],
)
def test_offers_that_cannot_be_taken(text: str) -> None:
    assert read_offer(text) is None

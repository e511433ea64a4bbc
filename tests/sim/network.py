"""The links between leaves: delay, loss, duplication, reordering, cuts of one direction."""

from collections.abc import Callable, Sequence

from sim.world import World


class Link:
    """One direction between two leaves. Messages overtake each other whenever their delays say so."""

    __slots__ = ("delay", "duplication", "is_cut", "jitter", "loss")

    def __init__(self, delay: float, jitter: float) -> None:
        self.delay = delay
        self.jitter = jitter
        self.loss = 0.0
        self.duplication = 0.0
        self.is_cut = False


class Network:
    """All links. Every leaf reaches every other one over two of them."""

    def __init__(self, world: World, leaves: Sequence[str]) -> None:
        self.world = world
        rng = world.rng
        self.delay = rng.choice((0.0002, 0.001, 0.004, 0.03))
        self.jitter = rng.choice((0.0005, 0.002, 0.008, 0.06))
        self.base_loss = rng.choice((0.0, 0.0, 0.005, 0.03))
        self.base_duplication = rng.choice((0.0, 0.01, 0.05))
        self.delays = {(a, b): self.delay * rng.choice((1.0, 1.0, 5.0)) for a in leaves for b in leaves if a != b}
        self.links = {pair: Link(delay, self.jitter) for pair, delay in self.delays.items()}
        self.sent = 0
        self.heal()
        for link in self.links.values():
            link.loss, link.duplication = self.base_loss, self.base_duplication

    def heal(self) -> None:
        """Every link is whole, nothing gets lost or doubled."""
        for pair, link in self.links.items():
            link.is_cut = False
            link.loss = link.duplication = 0.0
            link.delay, link.jitter = self.delays[pair], self.jitter

    def send(self, source: str, target: str, deliver: Callable[..., None], *args: object) -> None:
        """Call `deliver` once, twice or never."""
        link = self.links[source, target]
        rng = self.world.rng
        self.sent += 1
        if link.is_cut or (link.loss and rng.random() < link.loss):
            return
        self.world.at(link.delay + link.jitter * rng.random() ** 3, deliver, *args)
        if link.duplication and rng.random() < link.duplication:
            # The copy may be very late: a message out of an earlier epoch.
            late = rng.random() * (2.0 if rng.random() < 0.1 else 0.05)
            self.world.at(link.delay + late, deliver, *args)

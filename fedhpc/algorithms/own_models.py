"""The frame of methods whose clients own their models: no weights are exchanged, and networks may differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fedhpc.interfaces import Block, Blocks, Budget, Client, Federation, Loss, Objective, Split

HEAD = "head/image"  # the block of a classifier's last layer
FEWEST = 3  # clients in a sum: of two, each knows the other's part


class OwnModels:
    """Nothing but sums of what clients say about pictures leaves them."""

    reveals: ClassVar[frozenset[str]] = frozenset()
    stateful: ClassVar[bool] = True
    losses_on: Split | None = None

    def __init__(self) -> None:
        self.shared: dict[str, Block] = {}
        self.num_classes = 0
        self.width = 0  # of the features that the last layer reads; 0 where networks differ in it

    def setup(self, fed: Federation) -> None:
        """Raises ValueError for fewer than three clients, and for networks that score other numbers of classes."""
        at_least_three(len(fed.clients))
        self.num_classes, self.width = head_shape(fed)

    def personal(self, client: Client) -> Blocks:
        return client.own

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state, f"{type(self).__name__} keeps no shared state, got {sorted(state)}"


def at_least_three(count: int) -> None:
    """Raises ValueError when a sum would be over fewer clients."""
    if count < FEWEST:
        raise ValueError(
            f"the sum over {count} clients would show one of them what the other put in; "
            f"set the partition (and cohort.size) to {FEWEST} clients or more"
        )


def head_shape(fed: Federation) -> tuple[int, int]:
    """Classes, and width of the features (0 where networks differ in it).

    Raises ValueError for networks that score other numbers of classes.
    """
    shapes = [tuple(blocks[HEAD]["head.weight"].shape) for blocks in fed.networks]
    classes = [shape[0] for shape in shapes]
    for item, count in enumerate(classes):
        if count != classes[0]:
            raise ValueError(
                f"model.networks[{item}] scores {count} classes, model.networks[0] {classes[0]}: sums over clients "
                "would mean nothing; give every network the classes of data.label"
            )
    widths = {shape[1] for shape in shapes}
    return classes[0], widths.pop() if len(widths) == 1 else 0


def pretrain(client: Client, epochs: int, objective: Objective | None = None) -> None:
    """Local epochs before anything is exchanged."""
    client.resume()
    client.fit(Budget(epochs=epochs), objective)


def objective_of(loss: Loss) -> Objective:
    """A loss over outputs, as an objective over model and batch."""
    return lambda model, batch: loss(model(batch), batch)

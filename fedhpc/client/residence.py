"""Whose own model is on an engine.

A client that owns its model takes it up (`enter`) and works on it. It stays on the engine until another client needs
the place or the clients' states are asked for (`leave`): only then it is copied into client state, on the CPU. A client
that is alone on its engine is never copied within a round, so that many short turns cost what they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from fedhpc.client.engine import Engine
from fedhpc.interfaces import Batch, Block, Blocks, ClientId

OWN_MODEL = "model"  # in client state: its own model ...
STEP_MOMENTS = "fedhpc/step_moments"  # ... and the moments of its single steps


@dataclass
class Response:
    """A forward pass that a step may go back through, and the running statistics from before it."""

    batch: Batch
    outputs: Mapping[str, Tensor]
    statistics: dict[str, Tensor]


class Residence:
    """One engine and the client whose own model is on it.

    Args:
        states: of the slot's clients; `leave` writes into it.
    """

    def __init__(self, engine: Engine, states: dict[ClientId, dict[str, Any]]) -> None:
        self.engine = engine
        self.client: ClientId | None = None
        self._states = states
        self._response: Response | None = None

    @cached_property
    def start(self) -> Blocks:
        """The network's first weights: a copy, made when first asked for, which is before anybody has trained."""
        return {name: block.clone() for name, block in self.engine.weights.shared.items()}

    def enter(self, client: ClientId) -> None:
        """The client's own model is on the engine: its network's first weights when it has none yet."""
        if self.client == client:
            return
        self.leave()
        state = self._states.get(client, {})
        self.engine.weights.load(state.get(OWN_MODEL, self.start))
        self.engine.restore_stepper(state.get(STEP_MOMENTS, {}))
        self.client = client

    def leave(self) -> None:
        """Copy what is on the engine into its client's state; the place is free."""
        self.forget_response()
        if self.client is None:
            return
        state = self._states.setdefault(self.client, {})
        shared = self.engine.weights.shared
        state[OWN_MODEL] = {name: Block(block.flat.cpu().clone(), block.layout) for name, block in shared.items()}
        if moments := self.engine.stepper_state():
            state[STEP_MOMENTS] = moments
        else:
            state.pop(STEP_MOMENTS, None)
        self.client = None

    def forget(self) -> None:
        """The place is free, and what was on it is lost: states come from elsewhere."""
        self._response = self.client = None

    def forget_moments(self) -> None:
        """Single steps of all clients begin anew."""
        self.engine.restore_stepper({})
        for state in self._states.values():
            state.pop(STEP_MOMENTS, None)

    # ------------------------------------------------------------------------------------ a step in two halves
    def respond(self, batch: Batch) -> Mapping[str, Tensor]:
        """A forward pass in train mode. Without a `take_response` for the same batch it leaves no trace."""
        self.forget_response()
        before = {name: block.buffers.clone() for name, block in self.engine.weights.blocks.items()}
        self._response = Response(batch, self.engine.respond(batch), before)
        return self._response.outputs

    def take_response(self, batch: Batch) -> Mapping[str, Tensor] | None:
        """What `respond` made of this very batch, if nothing came between."""
        response, self._response = self._response, None
        if response is None or response.batch is batch:
            return None if response is None else response.outputs
        self._restore(response)
        return None

    def forget_response(self) -> None:
        """As if `respond` had not been called: running statistics go back."""
        if self._response is not None:
            self._restore(self._response)
            self._response = None

    def _restore(self, response: Response) -> None:
        for name, statistics in response.statistics.items():
            self.engine.weights.blocks[name].buffers.copy_(statistics)

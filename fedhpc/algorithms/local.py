"""Reference without exchange: every client trains its own model on its own rows."""

from __future__ import annotations

from collections.abc import Mapping

from fedhpc.algorithms.own_models import OwnModels
from fedhpc.config.algorithms import LocalConfig
from fedhpc.interfaces import Client, Contribution, Federation


class Local(OwnModels):
    """Only the mean training loss leaves a client."""

    def __init__(self, config: LocalConfig) -> None:
        super().__init__()

    def setup(self, fed: Federation) -> None: ...

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        return fed.reduce(self.turn, like={}, metrics=("loss",)).metrics

    def turn(self, client: Client) -> Contribution:
        client.resume()
        report = client.fit()
        return Contribution({}, float(client.num_examples), {"loss": report.loss})

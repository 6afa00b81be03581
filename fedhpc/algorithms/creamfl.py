"""CreamFL: Yu, Liu, Wang, Xu, Liu, "Multimodal Federated Learning via Contrastive Representation Ensemble", ICLR 2023,
arXiv 2302.08888.

Every client owns its model, the server has one too, and all look at public pairs of picture and text. A round:

    server       steps on the contrast of public pairs; g = what it then makes of their pictures and of their texts
    locally      client c fits its own rows; then steps on public rows, for each modality m that it holds:
                 inter (r_c,m against g of the other modality) + intra (r_c,m against g_m and its own of before)
    ensemble     per row k and modality m:  w_c = softmax_c( score of r_c,m,k against g of the other modality )
                 e_m,k = sum_c w_c r_c,m,k                                                      (cream_losses.py)
    distillation steps of the server on |r_m - e_m|^2

Two sums give e: of exp(score) r and of exp(score), so no client's representations or weights are seen. The server is
played by one client of the cohort, on public data alone. What is scored are the clients' own models: ours is a
classifier at each client, theirs a retrieval model at the server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedhpc.algorithms.cream_losses import inter_modal_loss, intra_modal_loss, mean_of_shares, share_of_mean
from fedhpc.algorithms.objectives import contrastive_loss
from fedhpc.algorithms.own_models import FEWEST, OwnModels, at_least_three
from fedhpc.config.joint import CreamFlConfig
from fedhpc.interfaces import Batch, Block, Client, Contribution, Federation, Loss

logger = logging.getLogger(__name__)

OTHER = {"image": "text", "text": "image"}
Outputs = Mapping[str, Tensor]
Seen = dict[str, Tensor]  # modality -> representations of all public rows, float32 [rows,D] of length 1


class CreamFl(OwnModels):
    """The sums over clients of what they make of public rows are all that anybody sees."""

    def __init__(self, config: CreamFlConfig) -> None:
        super().__init__()
        self._config = config
        self._server: dict[str, Block] = {}
        self._public: Sequence[Batch] = ()
        self._places: Sequence[Tensor] = ()  # of each public batch's rows among all

    def setup(self, fed: Federation) -> None:
        """Raises ValueError for fewer than three clients, and for a public set without anything to tell apart."""
        at_least_three(len(fed.clients))
        sizes = [len(batch["row"]) for batch in fed.public]
        if min(sizes, default=0) < 2:
            raise ValueError(
                f"a public batch has {min(sizes, default=0)} rows, and the contrast needs others to tell a row apart "
                "from; set public.size and public.batch_size to 2 or more, or another public.path"
            )
        self._public = [without_joint(batch) for batch in fed.public]
        self._places = torch.arange(sum(sizes)).split(sizes)
        self._server = {name: block.clone() for name, block in fed.initial.items()}
        self.width = self._server["embed"]["embed.weight"].shape[0]

    def round(self, fed: Federation, index: int) -> Mapping[str, float]:
        held = self.held(fed)
        at_least_three(len(fed.cohort))
        self.train_server(fed, [self.contrast] * len(self._public), self._config.server_epochs)
        seen = dict(zip(OTHER, self.seen_by_server(fed), strict=True))
        local = fed.reduce(partial(self.train, seen), like={}, metrics=("loss", "contrast"))
        shares = fed.each(partial(self.shares, seen))
        rows = sum(map(len, self._places))
        ensemble = {
            m: mean_of_shares(fed.sum({c: s[m] for c, s in shares.items()}, shape=(rows, self.width + 1))) for m in held
        }
        distances = [partial(self.distance, {m: e[p] for m, e in ensemble.items()}) for p in self._places]
        self.train_server(fed, distances, self._config.distill_epochs if ensemble else 0)
        return local.metrics

    def held(self, fed: Federation) -> list[str]:
        """Modalities that enough clients of the round hold for a sum over them. The round's first exchange: whoever is
        lost on the way is gone before work begins."""
        counts = fed.sum(
            fed.each(lambda client: torch.tensor([float(m in client.modalities) for m in OTHER])), shape=(2,)
        )
        for m, count in zip(OTHER, counts.tolist(), strict=True):
            if 0 < count < FEWEST:
                logger.warning(
                    "%g of %d clients hold %s, and a sum over fewer than %d would show what one of them put in: the "
                    "server learns nothing of it in this round", count, len(fed.cohort), m, FEWEST,
                )  # fmt: skip
        return [m for m, count in zip(OTHER, counts.tolist(), strict=True) if count >= FEWEST]

    # ---------------------------------------------------------------------------------------------------- the server
    def train_server(self, fed: Federation, losses: Sequence[Loss], epochs: int) -> None:
        """Epochs of one step a public batch, on its loss."""

        def steps(client: Client) -> Tensor:
            for _ in range(epochs):
                for batch, loss in zip(self._public, losses, strict=True):
                    client.step(batch, loss, rate=self._config.public_learning_rate)
            update = client.update(self._server)
            return torch.cat([update[name].flat for name in self._server])

        if not epochs:
            return
        sizes = [block.layout.numel for block in self._server.values()]
        moved = self.by_server(fed, steps, (sum(sizes),)).float().split(sizes)
        for block, update in zip(self._server.values(), moved, strict=True):
            block.flat.add_(update.to(block.flat.device))

    def seen_by_server(self, fed: Federation) -> Tensor:
        """What the server makes of public pictures and texts: float32 [2,rows,D]."""

        def both(client: Client) -> Tensor:
            return torch.stack(list(self.see(client).values()))

        return self.by_server(fed, both, (2, sum(map(len, self._places)), self.width)).float()

    def by_server(self, fed: Federation, fn: Callable[[Client], Tensor], shape: tuple[int, ...]) -> Tensor:
        """fn at the client that plays the server; the others put zeros into the sum that brings it to all."""
        player = min(fed.cohort)

        def turn(client: Client) -> Tensor:
            if client.id != player:
                return torch.zeros(shape)
            client.load(self._server)
            return fn(client)

        return fed.sum(fed.each(turn), shape=shape)

    def contrast(self, out: Outputs, batch: Batch) -> Tensor:
        """Pictures find their texts in the batch, and texts their pictures."""
        return contrastive_loss(out["image"].float(), out["text"].float(), self._config.server_temperature)

    def distance(self, ensemble: Seen, out: Outputs, batch: Batch) -> Tensor:
        """To the ensemble: mean squares [B,D], summed over modalities."""
        targets = {m: e.to(out[m].device) for m, e in ensemble.items()}
        return (
            self._config.distill * torch.stack([(out[m].float() - e).square().mean() for m, e in targets.items()]).sum()
        )

    # --------------------------------------------------------------------------------------------------- the clients
    def train(self, seen: Seen, client: Client) -> Contribution:
        """Its own rows, then public rows: near to what the server sees, away from what it saw itself before."""
        client.resume()
        before = {m: own for m, own in self.see(client).items() if m in client.modalities}
        report = client.fit()
        values = []
        for _ in range(self._config.public_epochs):
            for batch, places in zip(self._public, self._places, strict=True):
                loss = partial(self.regularise, seen, before, places)
                values.append(client.step(batch, loss, rate=self._config.public_learning_rate))
        contrast = sum(values) / len(values)
        return Contribution({}, float(client.num_examples), {"loss": report.loss, "contrast": contrast})

    def regularise(self, seen: Seen, before: Seen, places: Tensor, out: Outputs, batch: Batch) -> Tensor:
        """The weighted contrasts, summed over the modalities that the client holds (those of `before`)."""
        config, device = self._config, out["image"].device
        places = places.to(device)
        total = torch.zeros((), device=device)
        for m, own_before in before.items():
            own, same, other = out[m].float(), seen[m].to(device), seen[OTHER[m]].to(device)
            inter = inter_modal_loss(own, other, places, config.temperature)
            intra = intra_modal_loss(own, same[places], own_before.to(device)[places], config.temperature)
            total = total + config.inter * inter + config.intra * intra
        return total

    def shares(self, seen: Seen, client: Client) -> Seen:
        """Its part of the sums, float64 [rows,D+1] a modality; zeros for one that it does not hold."""
        client.resume()
        nothing = torch.zeros(sum(map(len, self._places)), self.width + 1, dtype=torch.float64)
        return {
            m: share_of_mean(own, seen[OTHER[m]].cpu(), self._config.score_temperature)
            if m in client.modalities
            else nothing
            for m, own in self.see(client).items()
        }

    def see(self, client: Client) -> Seen:
        """What the client's present weights make of all public rows, in eval mode, on the CPU."""
        outputs = [client.outputs(batch) for batch in self._public]
        return {m: torch.cat([out[m].float().cpu() for out in outputs]) for m in OTHER}

    def state_dict(self) -> dict[str, Any]:
        return {"server": self._server}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, block in state["server"].items():
            self._server[name].flat.copy_(block.flat)


def without_joint(batch: Batch) -> Batch:
    """The global tokens alone, of cached features: all that r_v and r_t are made of. The joint encoder, which nothing
    here reads, then has next to nothing to do."""
    if "image" in batch or not {"image_tokens", "text_tokens"} <= batch.keys():
        return batch
    return {name: x[:, :1].contiguous() if name.startswith(("image_", "text_")) else x for name, x in batch.items()}

"""The rows of a batch, dealt to the ranks of a slot: each runs the model on its share, all see the outputs of all.

A loss is then computed on the whole batch by every rank, as contrastive losses must be. Its gradient with respect to
the outputs goes back into the rank's own rows only, times the number of ranks, because DeepSpeed takes the mean of
what the ranks come to: the mean over ranks is the gradient of the whole batch, however the rows were dealt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fedhpc.interfaces import Batch

# Outputs whose only use is to be handed to a twin of the model in its batch: large, so they stay with their rows.
PASSED_ON = ("image_tokens", "text_tokens")
# Outputs [1] of a parameter. Known by name: what ZeRO-3 hands out is no nn.Parameter any more.
WITHOUT_ROWS = ("log_temperature", "logit_bias")


@dataclass(frozen=True)
class Ranks:
    """The ranks of a slot, and this one's place among them. group: None where there is one rank."""

    index: int
    count: int
    group: dist.ProcessGroup | None

    def sum(self, tensor: Tensor) -> Tensor:
        """In place."""
        if self.count > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor


@dataclass(frozen=True)
class Rows:
    """Which rows of a batch of `total` are whose: as even as can be, the first ranks have one more."""

    total: int
    ranks: Ranks

    @property
    def counts(self) -> list[int]:
        each, more = divmod(self.total, self.ranks.count)
        return [each + (rank < more) for rank in range(self.ranks.count)]

    @property
    def start(self) -> int:
        return sum(self.counts[: self.ranks.index])

    def own(self, tensor: Tensor) -> Tensor:
        """This rank's rows. A rank without any takes the first row, whose outputs `gather` drops: no rank may stand
        aside while the others gather parameters."""
        count = self.counts[self.ranks.index]
        return tensor[self.start : self.start + count] if count else tensor[:1]

    def gather(self, own: Tensor) -> Tensor:
        """The rows of all ranks [total, ...]."""
        gathered: Tensor = _Gather.apply(own, self)
        return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        ctx.shape = own.shape
        ranks, counts = rows.ranks, rows.counts
        if ranks.count == 1:
            return own.clone()
        count = counts[ranks.index]
        kind = torch.uint8 if own.dtype == torch.bool else own.dtype
        sent = own.new_zeros((max(counts), *own.shape[1:]), dtype=kind)
        sent[:count] = own[:count]
        received = [torch.empty_like(sent) for _ in counts]
        dist.all_gather(received, sent, group=ranks.group)
        return torch.cat([part[:n] for part, n in zip(received, counts, strict=True)]).to(own.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rows = ctx.rows
        count = rows.counts[rows.ranks.index]
        back = gradient.new_zeros(ctx.shape)
        back[:count] = gradient[rows.start : rows.start + count] * rows.ranks.count
        return back, None


class OwnRows:
    """An output that stayed with its rows; only a `SplitModel` can read it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Outputs(Mapping[str, Any]):
    """Outputs of the whole batch; each is gathered when first asked for, so every rank must ask alike."""

    def __init__(self, own: Mapping[str, Tensor], rows: Rows) -> None:
        self._own = own
        self._rows = rows
        self._whole: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._whole:
            tensor = self._own[name]
            if name in PASSED_ON:
                self._whole[name] = OwnRows(tensor)
            elif name in WITHOUT_ROWS:
                self._whole[name] = tensor
            else:
                self._whole[name] = self._rows.gather(tensor)
        return self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


class SplitModel:
    """Calls a model on this rank's rows of a batch.

    dtype: floating-point columns are cast to it.
    """

    def __init__(self, run: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], ranks: Ranks, dtype: torch.dtype):
        self._run = run
        self._ranks = ranks
        self._dtype = dtype

    def __call__(self, batch: Batch) -> Outputs:
        rows = Rows(next(len(column) for column in batch.values() if isinstance(column, Tensor)), self._ranks)
        return Outputs(self._run({name: self._take(column, rows) for name, column in batch.items()}), rows)

    def _take(self, column: Any, rows: Rows) -> Tensor:
        if isinstance(column, OwnRows):
            return column.tensor
        own = rows.own(column)
        return own.to(self._dtype) if own.is_floating_point() else own


class SplitBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation by the statistics of all ranks' rows, with torch's names and running statistics. For layers
    that see one value a channel and row, or a map of them."""

    ranks: Ranks

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        channels = x.shape[1]
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, channels] + [1] * (x.dim() - 2)
        wide = x.float()
        count = float(self.ranks.sum(torch.tensor([x.numel() / channels], device=x.device)))
        mean = _Sum.apply(wide.sum(dims), self.ranks) / count
        centred = wide - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims), self.ranks) / count
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None, "kept with the running statistics"
                self.num_batches_tracked.add_(1)
                rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, rate)
                self.running_var.lerp_(variance * (count / (count - 1)), rate)
        x = (centred * torch.rsqrt(variance + self.eps).view(shape)).to(x.dtype)
        if self.weight is not None:
            x = x * self.weight.view(shape) + self.bias.view(shape)
        return x


class _Sum(torch.autograd.Function):
    """Sum over ranks; what flows back is the sum of what flows back at every rank."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum(own.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum(gradient.clone()), None


def split_batch_norms(module: nn.Module, ranks: Ranks) -> None:
    """Turn the batch normalisation layers of a module into `SplitBatchNorm`, in place.

    Raises:
        ValueError: a layer is of a kind that cannot be turned (timm's, which are one with their activation).
    """
    if ranks.count == 1:
        return
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d):
            raise ValueError(
                f"mesh.shard: {ranks.count} divides each batch over ranks, and {name} ({type(layer).__name__}) "
                "normalises by its rank's rows alone; choose an image network without batch normalisation (a ViT)"
            )
        split: Any = layer
        split.__class__ = SplitBatchNorm
        split.ranks = ranks
    part: Any
    for part in module.modules():
        if hasattr(part, "needs_two"):
            part.needs_two = False  # the whole batch counts, not this rank's rows

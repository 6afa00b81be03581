"""Segmentation: a light convolutional decoder on the image encoder's token grid learns masks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhpc.client.client import derived_seed
from fedhpc.config.downstream import SegmentationTask
from fedhpc.downstream.loading import image_encoder
from fedhpc.downstream.rows import Rows
from fedhpc.downstream.scoring import Outcome, Record, estimate
from fedhpc.downstream.tuning import fit_with_patience, thawed_copy
from fedhpc.metrics.bootstrap import Statistic
from fedhpc.metrics.segmentation import dice
from fedhpc.metrics.weighted import weighted_mean
from fedhpc.models.vision import ImageEncoder


class Decoder(nn.Module):
    """Tokens [B,h*w,width] -> logits [B,H,W]: a 1x1 convolution, then doubling and a 3x3 convolution until the grid has
    the mask's size."""

    def __init__(self, width: int, channels: int, grid: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        self.grid, self.size = grid, size
        layers: list[nn.Module] = [nn.Conv2d(width, channels, 1)]
        for _ in range(max(0, math.ceil(math.log2(max(size[0] / grid[0], size[1] / grid[1]))))):
            layers += [
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.GroupNorm(math.gcd(8, channels), channels),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.layers(tokens.transpose(1, 2).unflatten(2, self.grid))
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        return x[:, 0]


class Segmenter(nn.Module):
    """Pictures, or a frozen encoder's regions, -> logits [B,H,W]."""

    def __init__(self, encoder: ImageEncoder | None, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        if self.encoder is not None:
            x = self.encoder.regions(self.encoder(x))
        logits: Tensor = self.decoder(x)
        return logits


def run_segmentation(rows: Rows, task: SegmentationTask) -> Outcome:
    """Dice on test: the mean over pictures of 2 |A and B| / (|A| + |B|), A where the decoder's probability exceeds 1/2.

    A mask's foreground is whatever is not 0. Loss: binary cross-entropy plus soft Dice loss, without augmentation. The
    epoch is chosen by Dice on val.
    Raises ValueError when the file has no masks, or the encoder no grid of tokens.
    """
    if "mask" not in rows.packed.columns:
        raise ValueError(
            f"data.path: {rows.packed.path} has no masks; set it to a file that has, such as `fedhpc pack cxr-sites` "
            "writes"
        )
    encoder = image_encoder(rows.run.module)
    mask_row = rows.packed.read("mask_row")
    train, val, test = (rows.select(split, mask_row >= 0, "a mask") for split in ("train", "val", "test"))
    masks = {}
    for split, chosen in (("train", train), ("val", val), ("test", test)):
        masks[split] = torch.from_numpy(rows.packed.read("mask", mask_row[chosen.numpy()]) > 0)
    size = (int(masks["train"].shape[1]), int(masks["train"].shape[2]))
    grid = token_grid(encoder, rows.run.spec.image_size)
    source = _Inputs(rows, encoder, torch.cat([train, val, test]), tune=task.tune)
    found: list[Tensor] = []
    trained = []
    for seed in range(task.num_seeds):
        torch.manual_seed(derived_seed(task.random_seed, "decoder", seed))
        decoder = Decoder(encoder.width, task.decoder_width, grid, size).to(rows.run.device)
        model = Segmenter(thawed_copy(encoder, rows.run.config.fit) if task.tune else None, decoder)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(derived_seed(task.random_seed, "batches", seed))

        def losses(epoch: int, model: Segmenter = model, generator: Any = generator) -> Iterator[Tensor]:
            order = torch.randperm(len(train), generator=generator)
            for places in order.split(task.fit.batch_size):
                target = masks["train"][places].to(rows.run.device).float()
                yield overlap_loss(model(source.take(train[places])), target)

        def score(model: Segmenter = model) -> float:
            return float(_dice(model, source, val, masks["val"], task.batch_size).mean())

        groups: list[dict[str, Any]] = [{"params": decoder.parameters(), "lr": task.fit.learning_rate}]
        if model.encoder is not None:
            groups.append({"params": model.encoder.parameters(), "lr": task.fit.encoder_learning_rate})
        epoch, best = fit_with_patience(model, groups, losses, score, task.fit)
        trained.append({"epoch": epoch, "val_dice": best})
        found.append(_dice(model, source, test, masks["test"], task.batch_size))
    # What a constant guess comes to: every pixel that is mostly foreground in training.
    usual = masks["train"].double().mean(dim=0) > 0.5
    baseline = dice(usual.expand_as(masks["test"]), masks["test"])
    counts = {"train": len(train), "val": len(val), "test": len(test)}
    detail = {"grid": list(grid), "mask_size": list(size), "trained": trained}
    return Outcome(_records(rows, task, test, found, baseline), counts, [], detail)


def _records(rows: Rows, task: SegmentationTask, test: Tensor, found: list[Tensor], baseline: Tensor) -> list[Record]:
    records = []
    for scope, part in rows.scopes(test).items():
        patient = rows.patient[test[part]]
        statistics: list[Statistic] = [_mean_dice(one[part], baseline[part]) for one in found]
        plain = torch.ones(1, len(part), dtype=torch.float64)
        by_seed = [{name: float(value) for name, value in statistic(plain).items()} for statistic in statistics]
        metrics = estimate(task, by_seed, statistics, patient)
        records.append(Record(scope, "tuned" if task.tune else "frozen", len(part), len(patient.unique()), metrics))
    return records


def _mean_dice(found: Tensor, baseline: Tensor) -> Statistic:
    return lambda weight: {"dice": weighted_mean(found, weight), "mean_mask_dice": weighted_mean(baseline, weight)}


def overlap_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy plus 1 - soft Dice (Milletari et al., "V-Net", 3DV 2016, section 3, without squares), means
    over the batch. logits, target: float [B,H,W], target 0 or 1."""
    chance = logits.sigmoid()
    overlap = (chance * target).sum(dim=(1, 2))
    total = chance.sum(dim=(1, 2)) + target.sum(dim=(1, 2))
    return F.binary_cross_entropy_with_logits(logits, target) + (1 - (2 * overlap + 1) / (total + 1)).mean()


def token_grid(encoder: Any, image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the encoder's regions, in proportion to the picture.

    Raises ValueError when it keeps no positions apart.
    """
    count = 0
    if isinstance(encoder, ImageEncoder):
        device = next(encoder.parameters()).device
        with torch.no_grad():
            count = encoder.regions(encoder(torch.zeros(1, *encoder.in_shape, device=device))).shape[1]
    height, width = image_size
    rows = round(math.sqrt(count * height / width))
    if count < 2 or rows < 1 or count % rows:
        raise ValueError(
            f"kind: segmentation needs an image encoder whose tokens form a grid over the picture; this one gives "
            f"{count} regions for {height} x {width}; take a run with a ViT or a convolutional network of timm"
        )
    return rows, count // rows


class _Inputs:
    """What goes into a Segmenter: pictures where the encoder is tuned, else its regions, kept where memory allows."""

    def __init__(self, rows: Rows, encoder: Any, chosen: Tensor, *, tune: bool) -> None:
        self._rows, self._encoder, self._tune = rows, encoder, tune
        self._kept: Tensor | None = None
        if tune:
            return
        one = self._regions(chosen[:1])
        if one.numel() * 4 * len(chosen) <= rows.run.config.data.memory_mib << 20:
            parts = [self._regions(part).cpu() for part in chosen.split(rows.task.batch_size)]
            self._kept = torch.cat(parts)
            self._place = torch.full((rows.packed.num_rows,), -1, dtype=torch.int64)
            self._place[chosen] = torch.arange(len(chosen))

    def take(self, which: Tensor) -> Tensor:
        if self._tune:
            return self._pictures(which)
        if self._kept is not None:
            return self._kept[self._place[which]].to(self._rows.run.device)
        return self._regions(which)

    def _pictures(self, which: Tensor) -> Tensor:
        (batch,) = self._rows.pictures.ordered(which, len(which))
        return batch["image"]

    @torch.no_grad()
    def _regions(self, which: Tensor) -> Tensor:
        regions: Tensor = self._encoder.regions(self._encoder(self._pictures(which)))
        return regions


@torch.no_grad()
def _dice(model: Segmenter, source: _Inputs, which: Tensor, mask: Tensor, batch_size: int) -> Tensor:
    """Dice of each picture, float64 [N] on the CPU."""
    parts = []
    for chosen, truth in zip(which.split(batch_size), mask.split(batch_size), strict=True):
        parts.append(dice((model(source.take(chosen)) > 0).cpu(), truth))
    return torch.cat(parts)

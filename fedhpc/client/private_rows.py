"""Record-level differential privacy: DP-SGD (Abadi et al., "Deep Learning with Differential Privacy", CCS 2016).

A step draws each row of the client with the same probability, scales each drawn row's gradient down to the clip, adds
Gaussian noise to their sum, and divides by how many rows are drawn on average, which tells nothing of the data. Row
gradients are Opacus's, whose hooks sit on the layers and do not mind that parameters are views of one buffer. Draws and
noise are ours: Opacus takes both from torch's generators, which start from 32 bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fedhpc.comm.noise import NoiseSource
from fedhpc.data.batches import BatchMaker
from fedhpc.interfaces import Batch, Loss
from fedhpc.models.blocks import NORM_LAYERS

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FAR = 1e-4  # relative: what rounding alone never makes
FLOAT32_ROOM = 1 - 2.0**-16  # norms are taken, and rows summed up, in float32


class RowGradients:
    """Puts clipped and noised gradients where `backward` would put plain ones.

    Args:
        module: on its device. Its layers get hooks, which act in `backward` alone.
        loss: a mean over the rows with a label, each a function of its own row.

    Raises:
        ValueError: Opacus is missing, or the module has layers whose row gradients are not known.
    """

    def __init__(
        self, module: nn.Module, loss: Loss, clip: float, noise_multiplier: float, source: NoiseSource
    ) -> None:
        refuse_layers(module)
        for layer in module.modules():
            if getattr(layer, "inplace", False):
                layer.inplace = False  # type: ignore[assignment]  # what a hook was given must stay as it was
        self._module = module
        self._loss = loss
        self._clip = clip
        self._noise_multiplier = noise_multiplier
        self._source = source
        for layer in module.modules():
            if isinstance(layer, CONVOLUTIONS):
                layer.register_forward_pre_hook(_row_major)
        # Pictures need no gradient, of which torch warns wherever a hook sits on the first layer.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        self._hooks = _opacus()(module, loss_reduction="sum")
        self._hooks.disable_hooks()
        self._purpose = ""
        self._expected = 1.0
        self._step = 0
        self._checked = False

    def batches(
        self,
        maker: BatchMaker,
        rows: Tensor,
        batch_size: int,
        steps: int,
        purpose: str,
        generator: torch.Generator,
    ) -> Iterator[Batch]:
        """`steps` batches of rows (int64 [n]) drawn one by one, batch_size on average, maybe none.

        purpose: names the fit, once and for all. generator: for augmentation.
        """
        rate = min(1.0, batch_size / len(rows))
        self._purpose, self._expected, self._step = purpose, rate * len(rows), 0
        drawn = (self._source.uniform(f"{purpose}, rows of step {k}", len(rows)) < rate for k in range(steps))
        return maker.drawn([rows[taken] for taken in drawn], generator)

    def backward(self, batch: Batch) -> Tensor:
        """Set the gradients of one step; the mean loss of its rows, a scalar without gradient. 0 without rows."""
        parameters = [p for p in self._module.parameters() if p.requires_grad]
        summed, value = self._clipped_sum(batch, parameters)
        numel = sum(p.numel() for p in parameters)
        noise = self._source.gaussian(f"{self._purpose}, noise of step {self._step}", numel)
        self._step += 1
        noise = noise.mul_(self._noise_multiplier * self._clip).to(value.device, torch.float32)
        for parameter, total, own in zip(parameters, summed, noise.split([p.numel() for p in parameters]), strict=True):
            gradient = (total + own.view(parameter.shape)) / self._expected
            parameter.grad = torch.empty_like(parameter).copy_(gradient)  # in the parameter's memory format
        return value

    def _clipped_sum(self, batch: Batch, parameters: list[nn.Parameter]) -> tuple[list[Tensor], Tensor]:
        device = parameters[0].device
        if not len(batch["row"]):
            return [torch.zeros_like(p) for p in parameters], torch.zeros((), device=device)
        self._hooks.enable_hooks()
        try:
            mean = self._loss(self._module(batch), batch)
            (mean * (batch["label"] >= 0).sum()).backward()
        finally:
            self._hooks.disable_hooks()
        rows: list[Tensor] = [p.grad_sample.flatten(1) for p in parameters]  # type: ignore[attr-defined]
        if not self._checked:
            self._check(rows, parameters)
        norms = torch.stack([torch.linalg.vector_norm(r, dim=1) for r in rows]).square().sum(0).sqrt()
        factors = (self._clip * FLOAT32_ROOM / norms).clamp(max=1.0)
        summed = [(factors @ r).view(p.shape) for p, r in zip(parameters, rows, strict=True)]
        for parameter in parameters:
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter.grad = None
        return summed, mean.detach()

    def _check(self, rows: list[Tensor], parameters: list[nn.Parameter]) -> None:
        """The rows' gradients add up to autograd's, or what is clipped is not what it seems."""
        for row, parameter in zip(rows, parameters, strict=True):
            whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gap = float((row.sum(0) - whole.reshape(-1)).norm())
            if not gap <= FAR * float(row.norm(dim=1).sum()):
                name = next(n for n, p in self._module.named_parameters() if p is parameter)
                raise RuntimeError(
                    f"the gradients of single rows, as Opacus takes them, do not add up to that of the batch at {name} "
                    f"(by {gap:.3g}): they cannot be clipped. Set privacy.unit: client, or another network"
                )
        self._checked = True


def refuse_layers(module: nn.Module) -> None:
    """Raises ValueError for layers that mix rows, and for parameters that no layer of its own holds."""
    for name, layer in module.named_modules():
        if isinstance(layer, NORM_LAYERS["batch_norm"]):
            raise ValueError(
                f"privacy.unit: record with batch normalisation ({name}), which mixes the rows of a batch, so that no "
                "row has a gradient of its own; set a network without it (model.image.name: cnn or cnn_tiny, or "
                "group or layer normalisation through model.image.options), or privacy.unit: client"
            )
        own = [p for p, parameter in layer.named_parameters(recurse=False) if parameter.requires_grad]
        if own and next(layer.children(), None) is not None:
            raise ValueError(
                f"privacy.unit: record with {type(layer).__name__}, which holds {', '.join(own[:3])} beside its "
                "layers: the gradient of a row is known for single layers only; set another network "
                "(model.image.name: cnn or cnn_tiny), or privacy.unit: client"
            )


def _row_major(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Opacus 1.6 cuts patches out of a map as if it were row-major, whatever its strides are."""
    return tuple(x.contiguous() for x in inputs) if layer.training else inputs


def _opacus() -> Any:
    try:
        from opacus import GradSampleModule
    except ImportError as error:
        raise ValueError(
            f"privacy.unit: record needs Opacus, which cannot be imported ({error}); pip install 'fedhpc[privacy]', or "
            "set privacy.unit: client"
        ) from error
    return GradSampleModule

"""A model of which only shapes exist: what memory a run will take can be told where no process has room for it.

    with Shapes():
        module = build()          # any code: libraries' own construction, forward and backward passes
    [p.shape for p in module.parameters()]

Parameters turn into torch's fake tensors as soon as a module has them: they have a shape and a device, and operations
on them give shapes. All else (inputs, masks, buffers) stays real, so that what code asks of it is answered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


class Shapes:
    """The context in which such a model is built."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._register = nn.Module.register_parameter
        self._draw = torch.nn.init._no_grad_trunc_normal_

    def __enter__(self) -> None:
        original, draw, mode = self._register, self._draw, self._mode

        def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
            original(module, name, param)
            if param is not None and has_values(param):
                fake = nn.Parameter(mode.from_tensor(param.detach()), requires_grad=param.requires_grad)
                module._parameters[name] = fake

        def truncated(tensor: Tensor, *settings: Any, **more: Any) -> Tensor:
            return draw(tensor, *settings, **more) if has_values(tensor) else tensor

        nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
        # The one initialiser of torch that looks at what it has drawn, and draws again.
        torch.nn.init._no_grad_trunc_normal_ = truncated

    def __exit__(self, *error: Any) -> None:
        torch.nn.init._no_grad_trunc_normal_ = self._draw
        nn.Module.register_parameter = self._register  # type: ignore[method-assign]


def has_values(tensor: Tensor) -> bool:
    """Whether there are numbers in it to be compared."""
    return not isinstance(tensor, FakeTensor) and not tensor.is_meta

"""Parameters that never get a gradient leave the model: every round would exchange them for nothing.

Encoders of timm and transformers come with parts that our reading of them never reaches: classifier heads, poolers,
the last norm of a feature map.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedhpc.models.shapes import has_values


def drop_unused(module: nn.Module, probe: Callable[[], Tensor]) -> tuple[str, ...]:
    """Remove what `probe`, a forward pass through `module`, does not depend on; returns the removed names.

    Runs one forward and backward pass in eval mode (no random numbers are drawn, no running statistics move). A whole
    module without a used parameter gives way to nn.Identity, a lone parameter to None. Where the forward pass needs the
    unused part all the same, it stays with requires_grad False, which keeps it off the wire too.
    """
    training = module.training
    module.eval()
    before, unused = _without_gradient(module, probe)
    removed: list[str] = []
    for name in _roots(module, unused):
        owner, leaf = _owner(module, name)
        original = getattr(owner, leaf)
        setattr(owner, leaf, nn.Identity() if isinstance(original, nn.Module) else None)
        if _unchanged(probe, before):
            removed.append(name)
            continue
        setattr(owner, leaf, original)
        if isinstance(original, nn.Module):
            original.requires_grad_(False)
        else:
            original.requires_grad = False
    module.train(training)
    return tuple(removed)


def _without_gradient(module: nn.Module, probe: Callable[[], Tensor]) -> tuple[Tensor, set[str]]:
    unused = {name for name, parameter in module.named_parameters() if parameter.requires_grad}

    def note(name: str) -> Callable[[Tensor], None]:
        def used(parameter: Tensor) -> None:
            unused.discard(name)
            parameter.grad = None  # at once: all gradients together are as large as the model

        return used

    hooks = [
        parameter.register_post_accumulate_grad_hook(note(name))
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    with torch.enable_grad():
        output = probe()
        output.sum().backward()
    for hook in hooks:
        hook.remove()
    unused |= {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return output.detach(), unused


def _roots(module: nn.Module, unused: set[str]) -> list[str]:
    """The fewest names that cover `unused`: modules where all parameters below are unused, else the parameters."""
    roots: dict[str, None] = {}
    used = {name for name, _ in module.named_parameters()} - unused
    for name in sorted(unused):
        parts = name.split(".")
        prefixes = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        root = next((prefix for prefix in prefixes if not any(u.startswith(prefix + ".") for u in used)), name)
        roots[root] = None
    return list(roots)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, leaf = name.rpartition(".")
    return module.get_submodule(parent), leaf


def _unchanged(probe: Callable[[], Tensor], before: Tensor) -> bool:
    try:
        with torch.no_grad():
            now = probe()
            return torch.equal(now, before) if has_values(before) else now.shape == before.shape
    except Exception:  # whatever a foreign model raises when a part of it is gone: then the part is needed
        return False

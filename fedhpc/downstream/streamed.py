"""A run's shared model for whoever reads its weights one after the other: never all in memory, never all in one piece.

The model is built for its structure, with large parameters put away in a file (models/stowing.py); weights are read
from the checkpoint, or from the shards that several ranks wrote, when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedhpc.config.schema import ClassifierConfig
from fedhpc.downstream.loading import SHARED, TrainedRun, first_model, load_run, open_folder
from fedhpc.federation.checkpoint import SHARED as FILE
from fedhpc.federation.pieces import Stored, files_of, opened
from fedhpc.models.blocks import block_of
from fedhpc.models.stowing import FileKeeper, Stowing


@contextmanager
def stream_run(folder: Path, client: int | str | None, scratch: Path) -> Iterator[TrainedRun]:
    """As `load_run`, but only `TrainedRun.value` gives weights; `module` is there for its structure.

    Where clients have weights of their own, or different networks, the whole model is loaded after all.

    Args:
        scratch: a folder on a disk with room for the model, for what is not in memory.

    Raises:
        ValueError: as `load_run`.
    """
    run = open_folder(folder)
    several = isinstance(run.config.model, ClassifierConfig) and run.config.model.networks is not None
    files = files_of(run.checkpoint, FILE, "safetensors")
    if client is not None or several or run.config.aggregation.local_blocks or not files:
        yield load_run(folder, client)
        return
    with Stowing(FileKeeper(scratch)) as stowing:
        module = first_model(run.config, run.spec)
    with opened(files) as handles:
        stored = Stored(handles)
        keys = keys_of(module)
        learned = {keys[name]: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
        if any(stored.shapes.get(key) != shape for key, shape in learned.items()):
            yield load_run(folder)  # knows whether blocks are their clients' own, or the checkpoint another model's
            return
        state = module.state_dict(keep_vars=True)

        def read(name: str) -> Tensor:
            if keys[name] in stored.shapes:
                shape = stored.shapes[keys[name]]
                flat = torch.empty(prod(shape))
                stored.read(keys[name], 0, flat)
                return flat.view(shape)
            with stowing.present(state[name]) as tensor:
                return tensor.detach().clone()

        yield replace(run.trained(module.eval(), torch.device("cpu"), SHARED), read=read)


def keys_of(module: nn.Module) -> Mapping[str, str]:
    """Name in the state dict -> key in the files of a checkpoint."""
    prefixes: Any = module.block_prefixes
    return {name: f"{block_of(name, prefixes)}//{name}" for name in module.state_dict()}

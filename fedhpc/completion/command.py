"""Completes the rows of a run's clients outside the run, in one process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fedhpc.completion.parts import Ranks
from fedhpc.completion.prepare import prepare
from fedhpc.config.schema import RunConfig
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.missing import draw_lost
from fedhpc.data.packers.phantom import ensure_phantom
from fedhpc.data.select import client_rows, data_spec


def complete_run(config: RunConfig) -> Iterator[str]:
    """What was completed, a line each.

    Raises:
        ValueError: the config has no completion, or a model cannot be loaded.
    """
    if config.completion is None:
        raise ValueError(
            "the config has no completion section; set completion: {method: neighbour}, generator or pretrained"
        )
    assert config.data.path is not None, "the command sets it"
    if config.data.phantom is not None:
        ensure_phantom(config.data.phantom, config.data.path)
    torch.set_num_threads(config.runtime.threads_per_rank)
    device = torch.device(config.runtime.device if config.runtime.device != "auto" else _best())
    with PackedFile(config.data.path) as packed:
        dealt = client_rows(packed, config)
        lost = draw_lost(config, packed, dealt)
        prepared = prepare(config, packed, data_spec(packed, config), dealt, lost, device, Ranks(), generates=True)
    train = np.concatenate([client.train for client in dealt])
    for name in prepared.reader.has:
        made = prepared.completed.get(name, np.empty(0, np.int64))
        lacks = int((~prepared.reader.has[name][train]).sum())
        yield f"{name}: {len(made)} training rows completed, {lacks} lack it still"


def _best() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"

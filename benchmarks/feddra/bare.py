"""The bare local steps of a FedDRA round: the same model, rows in memory; for each of the five sites 20 steps of
alignment blocks and heads on frozen encoders and 50 steps of everything. No anchor, no exchange, no losses for weights.

    python benchmarks/feddra/bare.py CONFIG PACKED.h5
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from fedhpc.algorithms.objectives import contrastive_loss
from fedhpc.config.load import load_config
from fedhpc.config.schema import RunConfig
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.select import client_rows, data_spec
from fedhpc.models.zoo import build_model

sys.path.insert(0, str(Path(__file__).parents[1] / "rounds"))
from heap import keep_heap


def steps(model: nn.Module, moving: list[nn.Parameter], count: int, images: Tensor, tokens: Tensor, size: int) -> None:
    """AdamW from fresh moments over shuffled batches that were gathered at once."""
    optimizer = torch.optim.AdamW(moving, lr=1e-3, weight_decay=0.05, fused=True)
    full = len(images) // size * size
    epochs = -(-count * size // full)
    order = torch.cat([torch.randperm(len(images))[:full] for _ in range(epochs)])[: count * size]
    for image, token in zip(images[order].split(size), tokens[order].split(size), strict=True):
        out = model({"image": image, "tokens": token})
        contrastive_loss(out["image"], out["text"], 0.07).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def main() -> None:
    keep_heap()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config: RunConfig = load_config(Path(sys.argv[1]))
    with PackedFile(Path(sys.argv[2])) as packed:
        model = build_model(config.model, data_spec(packed, config)).to(memory_format=torch.channels_last)
        rows = [client.train for client in client_rows(packed, config)]
        images = torch.from_numpy(packed.read("image")).float().div_(127.5).sub_(1).permute(0, 3, 1, 2)
        tokens = torch.from_numpy(packed.read("tokens")).long()
    stage1 = config.algorithm.stage1.steps  # type: ignore[union-attr]
    assert stage1 is not None and config.fit.steps is not None
    parameters = dict(model.named_parameters())
    for _ in range(config.rounds):
        start = time.perf_counter()
        for row in rows:
            own = torch.from_numpy(row)
            for count, frozen in ((stage1, True), (config.fit.steps, False)):
                for name, parameter in parameters.items():
                    parameter.requires_grad_(name != "log_temperature" and not (frozen and "_encoder." in name))
                model.train()
                if frozen:
                    model.image_encoder.eval()  # type: ignore[operator,union-attr]
                    model.text_encoder.eval()  # type: ignore[operator,union-attr]
                moving = [p for p in parameters.values() if p.requires_grad]
                steps(model, moving, count, images[own], tokens[own], config.fit.batch_size)
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()

"""Writes a safetensors file tensor by tensor, so that no more than one of them is in memory.

The format (github.com/huggingface/safetensors): the length of a JSON header in 8 bytes, the header, all values end to
end. The bytes are those that safetensors' own writer makes of the same tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {  # in the order in which safetensors writes them, so that all are aligned
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ALIGNMENT = 8  # bytes, of where values begin


def write_tensors(
    path: Path,
    described: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    value: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """One file.

    Args:
        described: name -> dtype and shape, known before any value.
        value: name -> the tensor; called once a name, in the order in which they are written.

    Raises:
        ValueError: a tensor is not what was described.
    """
    order = list(DTYPES)
    names = sorted(described, key=lambda name: (order.index(described[name][0]), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in names:
        dtype, shape = described[name]
        size = prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            tensor = value(name).detach().cpu().contiguous()
            if (tensor.dtype, tuple(tensor.shape)) != described[name]:
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, announced was {described[name]}")
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)

"""Updates in fewer bytes: `aggregation.compression`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedhpc.config.section import Section


class Bf16Compression(Section):
    """Rounded to bfloat16: 2 bytes a weight."""

    kind: Literal["bf16"]


class Int8Compression(Section):
    """Rounded at random to 255 levels of each block's largest value, right in expectation (QSGD: Alistarh et al. 2017,
    with a scale a block): 1 byte a weight and 4 a block."""

    kind: Literal["int8"]
    block: int = Field(256, ge=16, multiple_of=16)
    """Weights that share a scale."""


class TopKCompression(Section):
    """The largest weights of every update alone; what is left out is added to the next one (Stich et al. 2018,
    Algorithm 1): 8 bytes a weight that is sent."""

    kind: Literal["top_k"]
    ratio: float = Field(0.01, gt=0, le=1)
    """Share of the weights that is sent."""
    error_feedback: bool = True
    """Keep what is left out in client state. False: it is lost."""


CompressionConfig = Bf16Compression | Int8Compression | TopKCompression

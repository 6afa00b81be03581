"""sha256 of weights: the short proof that two runs ended alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from torch import Tensor

from fedhpc.client.client import DataClient
from fedhpc.federation.federation import SlotFederation
from fedhpc.interfaces import Algorithm, Block, Blocks, ClientId, TensorSpec


def blocks_sha256(blocks: Blocks, whole: Callable[[Block, TensorSpec], Tensor] = Block.view) -> bytes:
    """Over block names, tensor names, shapes and row-major float32 bytes, sorted by name; layout does not count.

    whole: gives one whole tensor of a block, where that is sharded.
    """
    digest = hashlib.sha256()
    for block_name in sorted(blocks):
        block = blocks[block_name]
        for spec in sorted(block.layout.specs, key=lambda spec: spec.name):
            tensor = whole(block, spec).detach().cpu().contiguous()
            digest.update(f"{block_name}//{spec.name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
    return digest.digest()


def final_sha256(fed: SlotFederation, algorithm: Algorithm, clients: Sequence[ClientId]) -> str:
    """Of the shared blocks; of all clients' own models, in the order of their ids, where a method shares none.

    Every rank calls this.
    """
    if algorithm.shared:
        return blocks_sha256(algorithm.shared, fed.collectives.whole).hex()

    def own(client: DataClient) -> dict[str, float]:
        digest = blocks_sha256(algorithm.personal(client))
        return {str(i): float(byte) for i, byte in enumerate(digest)}

    rows = fed.evaluate(own, [str(i) for i in range(32)], clients, "digest of own weights")
    return hashlib.sha256(bytes(int(row[str(i)]) for row in rows for i in range(32))).hexdigest()

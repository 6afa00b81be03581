"""sha256 of weights: the short proof that two runs ended alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fedhpc.client.client import DataClient
from fedhpc.federation.federation import SlotFederation
from fedhpc.interfaces import Algorithm, Blocks, ClientId


def blocks_sha256(blocks: Blocks) -> bytes:
    """Over block names, tensor names, shapes and row-major float32 bytes, sorted by name; layout does not count."""
    digest = hashlib.sha256()
    for block_name in sorted(blocks):
        block = blocks[block_name]
        for name in sorted(block):
            tensor = block[name].detach().cpu().contiguous()
            digest.update(f"{block_name}//{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
    return digest.digest()


def final_sha256(fed: SlotFederation, algorithm: Algorithm, clients: Sequence[ClientId]) -> str:
    """Of the shared blocks; of all clients' own models, in the order of their ids, where a method shares none.

    Every rank calls this.
    """
    if algorithm.shared:
        return blocks_sha256(algorithm.shared).hex()

    def own(client: DataClient) -> dict[str, float]:
        digest = blocks_sha256(algorithm.personal(client))
        return {str(i): float(byte) for i, byte in enumerate(digest)}

    rows = fed.evaluate(own, [str(i) for i in range(32)], clients)
    return hashlib.sha256(bytes(int(row[str(i)]) for row in rows for i in range(32))).hexdigest()

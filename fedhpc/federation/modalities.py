"""The columns of a classifier over several modalities, ready for batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from fedhpc.comm.sums import Sums
from fedhpc.config.fusion import FusionConfig
from fedhpc.config.schema import RunConfig
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.presence import present_rows
from fedhpc.data.tabular import corrupted_tokens, raw_values
from fedhpc.federation.scaling import federated_scaling
from fedhpc.interfaces import ClientId
from fedhpc.models.fusion import column_of

logger = logging.getLogger(__name__)


def fusion_columns(
    packed: PackedFile,
    config: RunConfig,
    owners: Mapping[str, Mapping[ClientId, Tensor]],
    sums: Sums,
    device: torch.device,
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Batch name -> column of the file, and those that are held in memory in place of the file's: tabular modalities,
    scaled by sums over the owners' training rows, and corrupted texts.

    owners: for each modality the training rows of all clients that hold it. Every rank calls this.
    """
    model = config.model
    assert isinstance(model, FusionConfig)
    columns = {column_of(m): column_of(m) for m in model.modalities}
    given: dict[str, Tensor] = {}
    tokens = packed.read("tokens") if model.reads_text and packed.max_tokens else None
    if tokens is not None and config.data.corrupt_text:
        share, seed = config.data.corrupt_text, config.random_seed
        tokens = corrupted_tokens(tokens, share, packed.vocab_size, packed.pad_token, seed)
        if model.text is not None:
            given["tokens"] = torch.from_numpy(tokens)
    least = config.fewest_owners
    for m in model.modalities:
        if m not in model.tabular:
            continue
        if least is not None and len(owners[m]) < least:
            logger.warning(
                "the scaling of %s is summed over %d clients, fewer than modalities.min_contributors = %d: it shows "
                "their means and deviations", m, len(owners[m]), least,
            )  # fmt: skip
        values = raw_values(packed, model, m, present_rows(packed, model, m), tokens)
        given[column_of(m)] = federated_scaling(values, owners[m], model.tabular[m].clip, sums, device).apply(values)
    return columns, given

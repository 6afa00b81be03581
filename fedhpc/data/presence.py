"""Which rows of a packed file have a modality of a fusion model. Imports no torch: `fedhpc check` asks too."""

from __future__ import annotations

import numpy as np

from fedhpc.config.fusion import FusionConfig
from fedhpc.data.hdf5 import PackedFile


def present_rows(packed: PackedFile, model: FusionConfig, modality: str) -> np.ndarray:
    """bool [rows of the file]: which have a modality. Raises ValueError where the file has no such thing."""
    source = modality
    if modality in model.tabular:
        tabular = model.tabular[modality]
        if tabular.labels:
            if missing := [name for name in tabular.labels if name not in packed.label_classes]:
                raise ValueError(
                    f"model.tabular.{modality}.labels: {', '.join(missing)} not in the file; its label columns are "
                    f"{', '.join(packed.label_classes)}"
                )
            return np.asarray(np.stack([packed.read(f"label/{name}") >= 0 for name in tabular.labels]).all(axis=0))
        source = "image" if tabular.thumbnail is not None else "text" if tabular.words else f"tabular/{modality}"
    if source not in packed.modalities:
        raise ValueError(
            f"the model reads {modality}, but {packed.path} has only {', '.join(packed.modalities)}; remove it from "
            "the model, name it as the file does, or pack it"
        )
    return packed.read(f"present/{source}").astype(bool)

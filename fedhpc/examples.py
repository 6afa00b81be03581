"""What a run reads: columns of the packed file, what stands in for some of them, and who scores the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedhpc.comm.sums import Sums
from fedhpc.completion.reader import JointReader
from fedhpc.config.schema import ClassifierConfig, DualEncoderConfig, FusionConfig, JointConfig, RunConfig
from fedhpc.data.batches import Source
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.noise import FILE as NOISY_LABELS
from fedhpc.data.noise import noisy_labels, write_noise
from fedhpc.data.partition import ClientRows
from fedhpc.data.select import label_column, match_groups
from fedhpc.federation.evaluate import ClassificationScorer, JointScorer, RetrievalScorer
from fedhpc.federation.modalities import fusion_columns
from fedhpc.population import Population

Scorer = RetrievalScorer | ClassificationScorer | JointScorer


@dataclass(frozen=True)
class Examples:
    """
    Attributes:
        columns: what a batch has -> column of the file.
        given: in place of a column, by its place in a batch.
    """

    scorer: Scorer
    columns: dict[str, str]
    reader: PackedFile | JointReader
    given: dict[str, Tensor] = field(default_factory=dict)

    def source(self, config: RunConfig) -> Source:
        return Source(self.reader, self.columns, config.data.memory_mib, self.given)


def examples_of(
    config: RunConfig,
    packed: PackedFile,
    population: Population,
    sums: Sums,
    device: torch.device,
    run_dir: Path | None,
) -> Examples:
    """Every rank calls this: scales of columns are sums over clients. run_dir: gets the list of wrong labels."""
    model = config.model
    if isinstance(model, JointConfig):
        prepared = population.prepared
        assert prepared is not None
        label = torch.from_numpy(packed.read(prepared.columns["label"])).long()
        noisy = {} if config.noise is None else {"label": trained_labels(config, packed, population.dealt, run_dir)}
        given = {**prepared.given, **noisy}
        return Examples(JointScorer(label, model.modalities), prepared.columns, prepared.reader, given)
    if isinstance(model, FusionConfig):
        return _of_modalities(config, model, packed, population, sums, device)
    if isinstance(model, ClassifierConfig):
        column = f"label/{label_column(packed, config)}"
        scorer = ClassificationScorer(torch.from_numpy(packed.read(column)).long())
        given = {} if config.noise is None else {"label": trained_labels(config, packed, population.dealt, run_dir)}
        return Examples(scorer, {"image": "image", "label": column}, packed, given)
    assert isinstance(model, DualEncoderConfig)
    group = torch.from_numpy(match_groups(packed, config.evaluation.match))
    scorer_of_pairs = RetrievalScorer(group, config.evaluation.batch_size)
    return Examples(scorer_of_pairs, {"image": "image", "tokens": "tokens"}, packed)


def _of_modalities(
    config: RunConfig,
    model: FusionConfig,
    packed: PackedFile,
    population: Population,
    sums: Sums,
    device: torch.device,
) -> Examples:
    owners = population.owners
    rows = {m: {c: r.rows.train for c, r in owners.items() if m in r.modalities} for m in model.modalities}
    columns, given = fusion_columns(packed, config, rows, sums, device)
    columns["label"] = f"label/{label_column(packed, config)}"
    _, patient = np.unique(packed.patients(), return_inverse=True)
    label, patients = torch.from_numpy(packed.read(columns["label"])).long(), torch.from_numpy(patient)
    return Examples(ClassificationScorer(label, patients, config.evaluation.num_resamples), columns, packed, given)


def trained_labels(config: RunConfig, packed: PackedFile, dealt: Sequence[ClientRows], run_dir: Path | None) -> Tensor:
    """data.label with config.noise in the clients' training rows, int32 [rows of the file]; run_dir gets a list."""
    assert config.noise is not None
    column = label_column(packed, config)
    labels, classes = packed.read(f"label/{column}"), packed.label_classes[column]
    noisy = noisy_labels(config.noise, labels, classes, dealt, config.random_seed)
    if run_dir is not None:
        write_noise(run_dir / NOISY_LABELS, labels, noisy, classes, dealt)
    return torch.from_numpy(noisy)

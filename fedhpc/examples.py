"""What a run reads: columns of the packed file, what stands in for some of them, and who scores the outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedhpc.comm.sums import Sums
from fedhpc.completion.reader import JointReader
from fedhpc.config.byzantine import LabelFlipAttack
from fedhpc.config.schema import ClassifierConfig, DualEncoderConfig, FusionConfig, JointConfig, RunConfig
from fedhpc.data.attack import attackers, flip_labels
from fedhpc.data.batches import Source
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.noise import FILE as NOISY_LABELS
from fedhpc.data.noise import noisy_labels, write_noise
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
        noisy = {} if config.noise is None else {"label": trained_labels(config, packed, population, run_dir)}
        given = {**prepared.given, **noisy}
        return Examples(JointScorer(label, model.modalities), prepared.columns, prepared.reader, given)
    if isinstance(model, FusionConfig):
        return _of_modalities(config, model, packed, population, sums, device, run_dir)
    if isinstance(model, ClassifierConfig):
        column = f"label/{label_column(packed, config)}"
        scorer = ClassificationScorer(torch.from_numpy(packed.read(column)).long())
        wrong = config.noise is not None or isinstance(config.attack, LabelFlipAttack)
        given = {"label": trained_labels(config, packed, population, run_dir)} if wrong else {}
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
    run_dir: Path | None,
) -> Examples:
    owners = population.owners
    rows = {m: {c: r.rows.train for c, r in owners.items() if m in r.modalities} for m in model.modalities}
    columns, given = fusion_columns(packed, config, rows, sums, device)
    columns["label"] = f"label/{label_column(packed, config)}"
    if config.noise is not None:
        given["label"] = trained_labels(config, packed, population, run_dir)
    _, patient = np.unique(packed.patients(), return_inverse=True)
    label, patients = torch.from_numpy(packed.read(columns["label"])).long(), torch.from_numpy(patient)
    return Examples(ClassificationScorer(label, patients, config.evaluation.num_resamples), columns, packed, given)


def trained_labels(config: RunConfig, packed: PackedFile, population: Population, run_dir: Path | None) -> Tensor:
    """data.label with config.noise in the clients' training rows, and flipped in those of attackers that do so: int32
    [rows of the file]; run_dir gets a list."""
    dealt, column = population.dealt, label_column(packed, config)
    labels, classes = packed.read(f"label/{column}"), packed.label_classes[column]
    noisy = labels
    if config.noise is not None:
        noisy = noisy_labels(config.noise, labels, classes, dealt, config.random_seed)
    if isinstance(config.attack, LabelFlipAttack):
        who = attackers(config.attack, population.trainers, config.random_seed)
        noisy = flip_labels(noisy, len(classes), dealt, who)
    if run_dir is not None:
        write_noise(run_dir / NOISY_LABELS, labels, noisy, classes, dealt)
    return torch.from_numpy(noisy)

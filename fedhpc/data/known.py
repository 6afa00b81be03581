"""A config against what its packed file says of itself, without torch: for ``fedhpc check``.

Read are attributes, and the columns site, split, present and label: one number a row each, no pictures and no text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedhpc.config.algorithms import POOLED, AflConfig, FedDRAConfig, LocalConfig, QfflConfig
from fedhpc.config.blocks import encoders, open_local_blocks
from fedhpc.config.checks_robust import lonely_cohort, trim_problem
from fedhpc.config.checks_updates import too_few_clients
from fedhpc.config.fields import closest, shown
from fedhpc.config.schema import (
    ClassifierConfig,
    ColumnPartition,
    DirichletPartition,
    DualEncoderConfig,
    FusionConfig,
    GroupsPartition,
    JointConfig,
    RunConfig,
)
from fedhpc.data.hdf5 import SPLITS, PackedFile
from fedhpc.data.packers.phantom import ensure_phantom, phantom_path
from fedhpc.data.phantom import ATTRIBUTES
from fedhpc.data.presence import present_rows

Array = np.ndarray


def file_of(config: RunConfig) -> Path:
    """The packed file that the run reads, whether it is there or not."""
    if config.data.path is not None:
        return config.data.path
    assert config.data.phantom is not None, "the schema demands one of them"
    return phantom_path(config.data.phantom)


def check_packed(config: RunConfig) -> list[str]:
    """Problems between a config and its packed file, one line each. Of a set that will be generated: with its names."""
    path = file_of(config)
    if not path.is_file():
        return list(_to_generate(config)) if config.data.phantom is not None else []
    try:
        if config.data.phantom is not None:
            ensure_phantom(config.data.phantom, path)
        with PackedFile(path) as packed:
            return list(_problems(config, packed))
    except (ValueError, OSError) as error:
        return [str(error)]


def not_checked(config: RunConfig) -> list[str]:
    """What only the start of the run can tell, in words."""
    found = []
    if not file_of(config).is_file():
        found.append(f"the rows of {file_of(config)}, which is not there yet")
    elif not isinstance(config.partition, ColumnPartition):
        found.append(f"whether partition.kind = {config.partition.kind} finds rows for every client")
    for key in ("options", "pretrained"):
        found += [f"model.{name}.{key}" for name, encoder in encoders(config.model).items() if getattr(encoder, key)]
    if patterns := open_local_blocks(config):
        found.append(f"whether aggregation.local_blocks {', '.join(patterns)} match a tensor")
    return found


def _to_generate(config: RunConfig) -> Iterator[str]:
    assert config.data.phantom is not None
    yield from _columns(config, ["finding", *ATTRIBUTES], "the generated set")
    sites = [f"site-{chr(ord('a') + k)}" for k in range(config.data.phantom.num_sites)]
    yield from _left_out(config, sites, "the generated set")


def _problems(config: RunConfig, packed: PackedFile) -> Iterator[str]:
    if isinstance(config.model, FusionConfig):
        yield from _columns(config, list(packed.label_classes), str(packed.path))
        yield from _modalities(config.model, packed)
        return
    needs = ["image"] if isinstance(config.model, ClassifierConfig) else ["image", "text"]
    if isinstance(config.model, JointConfig):
        needs = list(config.model.modalities)
    lacking = [modality for modality in needs if modality not in packed.modalities]
    for modality in lacking:
        yield (
            f"model.kind = {config.model.kind} needs {' and '.join(needs)}, but {packed.path} has only "
            f"{', '.join(packed.modalities)}; pack it with --{modality}-column, or choose another model"
        )
    columns = list(_columns(config, list(packed.label_classes), str(packed.path)))
    yield from columns
    yield from _sizes(config, packed)
    if not lacking and not columns:
        yield from _clients(config, packed, _usable(config, packed, needs))


def _modalities(model: FusionConfig, packed: PackedFile) -> Iterator[str]:
    """What a model over several modalities reads of the file."""
    for name in model.modalities:
        try:
            present_rows(packed, model, name)
        except ValueError as error:
            yield str(error)


def _columns(config: RunConfig, labels: Sequence[str], where: str) -> Iterator[str]:
    """Label columns that the config names."""
    named: list[tuple[str, str | None, Sequence[str]]] = []
    if not isinstance(config.model, DualEncoderConfig):
        named.append(("data.label", config.data.label, ()))
    if isinstance(config.partition, DirichletPartition):
        named.append(("partition.label", config.partition.label, ()))
    if isinstance(config.partition, ColumnPartition):
        named.append(("partition.column", config.partition.column, ("site",)))
    if isinstance(config.partition, GroupsPartition):
        named.append(("partition.within", config.partition.within, ()))
        named.append(("partition.column", config.partition.column, ("site",)))
    named += [("evaluation.match", column, ()) for column in config.evaluation.match or []]
    for key, column, more in named:
        known = [*more, *sorted(labels)]
        if column is not None and column not in known:
            meant = closest(column, known)
            hint = f"did you mean {meant}? " if meant else ""
            yield f"{key} = {column}: {where} has no such column; {hint}it has {', '.join(known) or 'none'}"


def _sizes(config: RunConfig, packed: PackedFile) -> Iterator[str]:
    asked = config.data.max_tokens
    if asked is not None and packed.max_tokens and asked > packed.max_tokens:
        yield (
            f"data.max_tokens = {asked}, but {packed.path} has {packed.max_tokens} tokens a row; remove it, or pack "
            f"again with --max-tokens {asked}"
        )
    channels = packed.image_shape[2] if packed.image_shape else 1
    for key in ("image_mean", "image_std"):
        given = len(getattr(config.data, key))
        if given not in (1, channels):
            yield (
                f"data.{key} has {given} values, but the pictures of {packed.path} have {channels} channels; give one "
                "value, or one for each channel"
            )


def _usable(config: RunConfig, packed: PackedFile, needs: Sequence[str]) -> Array:
    """bool [rows]: what the model can use, as `data.select.usable_rows`."""
    present = [packed.read(f"present/{modality}").astype(bool) for modality in needs]
    usable = np.asarray(np.all(present, axis=0))
    if isinstance(config.model, JointConfig) and (config.model.missing == "zeros" or config.completion is not None):
        usable |= np.any(present, axis=0) & (packed.read("split") == SPLITS.index("train"))
    if isinstance(config.model, ClassifierConfig | JointConfig) and config.data.label is not None:
        usable &= packed.read(f"label/{config.data.label}") >= 0
    return usable


@dataclass(frozen=True)
class Holder:
    """A client of `partition.kind: column`: its usable rows by split."""

    name: str
    rows: dict[str, int]


def _clients(config: RunConfig, packed: PackedFile, usable: Array) -> Iterator[str]:
    if not usable.any():
        yield f"no row of {packed.path} has all that model.kind = {config.model.kind} needs; see `fedhpc describe`"
        return
    partition = config.partition
    if not isinstance(partition, ColumnPartition):
        return  # who holds what depends on patients, which are not read
    holders = _holders(partition.column, packed, usable)
    names = [holder.name for holder in holders]
    if wrong := list(_left_out(config, names, str(packed.path))):
        yield from wrong
        return
    trainers = [holder for holder in holders if holder.name not in partition.leave_out]
    few = [f"{one.name} ({one.rows['train']})" for one in holders if one.rows["train"] < partition.min_examples]
    if few:
        yield (
            f"partition.min_examples = {partition.min_examples}, but {len(few)} of {len(holders)} clients have fewer "
            f"training rows: {_some(few)}; choose another column or kind, or lower min_examples"
        )
    yield from _cohort(config, len(trainers), packed)
    yield from _losses(config, trainers, partition)


def _left_out(config: RunConfig, sites: Sequence[str], where: str) -> Iterator[str]:
    partition = config.partition
    if not isinstance(partition, ColumnPartition) or partition.column != "site":
        return
    if unknown := sorted(set(partition.leave_out) - set(sites)):
        meant = closest(unknown[0], sites)
        hint = f"did you mean {meant}? " if meant else ""
        yield f"partition.leave_out = {shown(unknown)}: {where} has no such site; {hint}it has {', '.join(sites)}"
    elif set(partition.leave_out) >= set(sites):
        yield f"partition.leave_out = {shown(partition.leave_out)} names every site of {where}; leave one to train"


def _holders(column: str, packed: PackedFile, usable: Array) -> list[Holder]:
    is_site = column == "site"
    code = packed.read("site" if is_site else f"label/{column}")[usable]
    names = packed.site_names if is_site else packed.label_classes[column]
    split = packed.read("split")[usable]
    held = [value for value in np.unique(code).tolist() if value >= 0]
    return [Holder(names[c], {s: int(((code == c) & (split == k)).sum()) for k, s in enumerate(SPLITS)}) for c in held]


def _cohort(config: RunConfig, clients: int, packed: PackedFile) -> Iterator[str]:
    if isinstance(config.algorithm, (LocalConfig, *POOLED)):
        return
    size = config.cohort.size
    if size is not None and size > clients:
        yield f"cohort.size = {size}, but {packed.path} makes {clients} clients that train; set {clients} or less"
    yield from trim_problem(config, clients, f"{packed.path} makes")
    if size is None:  # else said without the file
        yield from lonely_cohort(config, clients)
        yield from too_few_clients(config, clients)


def _losses(config: RunConfig, trainers: Sequence[Holder], partition: ColumnPartition) -> Iterator[str]:
    """As task.check_losses: some algorithms measure every client's loss."""
    algorithm = config.algorithm
    if isinstance(algorithm, FedDRAConfig) and algorithm.dro is not None:
        key, split = "algorithm.dro.loss_split", algorithm.dro.loss_split
        split = "train" if algorithm.variant == "upstream" else split
    elif isinstance(algorithm, AflConfig):
        key, split = "algorithm.loss_split", algorithm.loss_split
    elif isinstance(algorithm, QfflConfig):
        key, split = "", "train"
    else:
        return
    short = {one.name: one.rows[split] for one in trainers if one.rows[split] < 2}
    if short:
        enough = split == "val" and all(one.rows["train"] >= 2 for one in trainers)
        cures = [f"set {key}: train"] if enough else []
        if partition.column == "site" and len(short) < len(trainers):
            cures.append(f"set partition.leave_out: {shown([*partition.leave_out, *short])}")
        cures.append("pack fewer, larger sites" if partition.column == "site" else "choose another partition")
        yield (
            f"algorithm.name = {algorithm.name} measures the loss of every client on its {split} rows, 2 at least, but "
            f"{_some([f'{name} has {rows}' for name, rows in short.items()])}; {', or '.join(cures)}"
        )


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")

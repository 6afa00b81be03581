"""What no single section can know: keys that fight each other, and keys that would have no effect.

`idle_keys` is the one list of keys without effect: set by hand they are errors, and a dumped config leaves them out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedhpc.config.algorithms import (
    OWN_MODELS,
    POOLED,
    FedDRAConfig,
    FedOptConfig,
    LocalConfig,
    QfflConfig,
    ScaffoldConfig,
)
from fedhpc.config.blocks import encoders, unmatched_local_blocks
from fedhpc.config.checks_distillation import check_distillation, idle_in_distillation
from fedhpc.config.checks_fusion import check_fusion, idle_in_fusion
from fedhpc.config.checks_joint import check_joint, idle_in_joint
from fedhpc.config.checks_privacy import check_privacy, idle_in_privacy
from fedhpc.config.checks_robust import ROBUST_CHECKS
from fedhpc.config.checks_secure import check_secure, idle_in_secure
from fedhpc.config.checks_updates import check_updates, idle_beside_updates
from fedhpc.config.draft import told
from fedhpc.config.fields import closest, shown
from fedhpc.config.objectives import CrossEntropyConfig, MvpConfig
from fedhpc.config.schema import (
    ClassifierConfig,
    ColumnPartition,
    DualEncoderConfig,
    GroupsPartition,
    JointConfig,
    RunConfig,
)
from fedhpc.config.sharding import sharding_problems

Add = Callable[[str, str, str], None]  # section, keys with blanks between them, why
IdleKeys = Callable[[RunConfig, Add], None]


def check(config: RunConfig, world_size: int | None = None, is_draft: bool = False) -> list[str]:
    """Problems between keys, one line each; also against the number of ranks where `world_size` is given.

    is_draft: the schema refused the config, which is a `draft`: only what its keys can tell.
    """
    parts: list[Iterator[str]] = [
        *(_idle(config, keys) for keys in (_idle_in_algorithm, _idle_elsewhere)),
        _clients(config),
        _local_blocks(config),
        _pixels(config),
        _model(config),
        _objective(config),
        _rounds(config),
        _feddra(config),
        *(part(config) for part in ROBUST_CHECKS),
        _plain_sgd(config),
        check_distillation(config),
        check_fusion(config),
        check_joint(config),
        sharding_problems(config),
        check_secure(config),
        check_privacy(config),
        check_updates(config),
    ]
    if world_size is not None:
        parts.append(_ranks(config, world_size))
    return [line for part in parts for line in told(part, is_draft)]


def check_files(config: RunConfig, is_draft: bool = False) -> list[str]:
    """Files that the run would read and that are not there. Needs the machine that runs it, so it is not in `check`."""
    parts = (_missing_data(config), _missing_weights(config))
    return [line for part in parts for line in told(part, is_draft)]


def _missing_data(config: RunConfig) -> Iterator[str]:
    for section, data in (("data", config.data), ("public", config.public)):
        path = None if data is None else data.path
        if data is None or path is None or data.phantom is not None or path.is_file():
            continue
        near = closest(path.name, (file.name for file in path.parent.glob("*.h5"))) if path.parent.is_dir() else None
        hint = f"did you mean {path.parent / near}? Otherwise write" if near else "write"
        under = "" if path.is_absolute() else f" in {Path.cwd()}, where the command was started"
        yield (
            f"{section}.path = {path}: no such file{under}; {hint} it with `fedhpc pack DATASET ... -o {path}`, "
            f"or set {section}.phantom: {{}} for generated data"
        )


def _missing_weights(config: RunConfig) -> Iterator[str]:
    for name, encoder in encoders(config.model).items():
        if encoder.pretrained is None or not encoder.pretrained.startswith((".", "/", "~")):
            continue  # a hub id
        if not Path(encoder.pretrained).expanduser().exists():
            yield (
                f"model.{name}.pretrained = {encoder.pretrained}: no such folder; give one that exists on every node, "
                "a hub id, or null for random weights"
            )


def idle_keys(config: RunConfig) -> dict[str, str]:
    """Dotted keys that have no effect in this config -> why, as the end of a sentence."""
    return _collected(config, _idle_in_algorithm) | _collected(config, _idle_elsewhere)


def _collected(config: RunConfig, keys: IdleKeys) -> dict[str, str]:
    idle: dict[str, str] = {}
    keys(config, lambda section, names, why: idle.update({f"{section}.{name}": why for name in names.split()}))
    return idle


def _idle_in_algorithm(config: RunConfig, add: Add) -> None:
    algorithm = config.algorithm
    if isinstance(algorithm, (LocalConfig, *POOLED)):
        everyone = "everyone takes part" if isinstance(algorithm, LocalConfig) else "there is only one client"
        add("cohort", "size fraction dropout", f"with algorithm.name: {algorithm.name}, where {everyone}")
    if isinstance(algorithm, (*POOLED, *OWN_MODELS)):
        add("aggregation", "local_blocks", f"with algorithm.name: {algorithm.name}, which exchanges no weights")
    if isinstance(algorithm, FedOptConfig) and algorithm.server_optimizer == "momentum":
        add("algorithm", "beta2 tau", "with server_optimizer: momentum")
    if isinstance(algorithm, QfflConfig) and algorithm.q == 0:
        add("algorithm", "lipschitz loss_fraction", "with q: 0, where losses do not weigh")
    if isinstance(algorithm, FedDRAConfig):
        _idle_in_feddra(algorithm, add)
    idle_in_distillation(config, add)


def _idle_elsewhere(config: RunConfig, add: Add) -> None:
    model, optimizer = config.model, config.fit.optimizer
    if config.aggregation.arithmetic == "float32":
        add("aggregation", "fraction_bits", "with arithmetic: float32")
    add("fit.optimizer", "betas eps" if optimizer.name == "sgd" else "momentum", f"with name: {optimizer.name}")
    idle_in_fusion(config, add)
    idle_in_joint(config, add)
    idle_in_secure(config, add)
    idle_in_privacy(config, add)
    idle_beside_updates(config, add)
    if isinstance(model, ClassifierConfig):
        add("data", "max_tokens", "with model.kind: classifier, which reads no text")
        add("evaluation", "match", "with model.kind: classifier, which retrieves nothing")
        if model.image is not None and model.image.name in ("cnn", "cnn_tiny"):
            add("model.image", "pretrained options freeze", f"with name: {model.image.name}, which is no timm network")
    elif isinstance(model, DualEncoderConfig):
        add("data", "label", "with model.kind: dual_encoder, which learns from pairs")
        if not model.align:
            add("model", "align_heads", "with align: false")
    if config.evaluation.every is None:
        add("evaluation", "split", "without evaluation.every; the only evaluation uses final_split")


def _idle_in_feddra(algorithm: FedDRAConfig, add: Add) -> None:
    for schedule, keys in {"sequential": "stage1_rounds", "plateau": "plateau_patience plateau_min_delta"}.items():
        if algorithm.schedule != schedule:
            add("algorithm", keys, f"with schedule: {algorithm.schedule}")
    if algorithm.schedule != "alternate":
        add("algorithm", "stage2_start", f"with schedule: {algorithm.schedule}, where no round has both stages")
    if algorithm.schedule == "joint":
        add("algorithm", "stage1", "with schedule: joint, which has no stage 1")
    if algorithm.mu == 0:
        add("algorithm", "constraint", "with mu: 0")
    if algorithm.mu == 0 and algorithm.dro is None:
        add("algorithm", "variant", "with mu: 0 and dro: null, where the released code does nothing else")
    if algorithm.dro is None:
        return
    add("algorithm", "weight", "with dro, whose weights take its place; set dro: null")
    if algorithm.dro.set == "simplex":
        add("algorithm.dro", "rho", "with set: simplex, which has no radius")
    if algorithm.dro.update == "exact":
        add("algorithm.dro", "step_size", "with update: exact, which takes no step")
    if algorithm.variant == "upstream":
        add("algorithm.dro", "apply loss_split loss_fraction loss_baseline", "with variant: upstream, which fixes it")


def _idle(config: RunConfig, keys: IdleKeys) -> Iterator[str]:
    for dotted, why in _collected(config, keys).items():
        *parents, key = dotted.split(".")
        section: Any = config
        for part in parents:
            section = getattr(section, part)
        assert isinstance(section, BaseModel) and key in type(section).model_fields, dotted
        value = getattr(section, key)
        is_off = value is None or value is False or value in ([], {})  # says what holds anyway
        if key in section.model_fields_set and not is_off:
            plain = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
            given = shown(list(plain) if isinstance(plain, tuple) else plain)
            yield f"{dotted} = {given}: has no effect {why}; remove it"


def _clients(config: RunConfig) -> Iterator[str]:
    """Cohort against partition against data."""
    partition, phantom = config.partition, config.data.phantom
    if isinstance(partition, ColumnPartition):
        known = phantom is not None and partition.column == "site"
        clients = phantom.num_sites if phantom is not None and known else None
        source = "data.phantom.num_sites"
    elif isinstance(partition, GroupsPartition):
        clients, source = None, "partition"
    else:
        clients, source = partition.num_clients, "partition.num_clients"
        if phantom is not None and clients > phantom.num_patients:
            yield (
                f"partition.num_clients = {clients} but data.phantom.num_patients = {phantom.num_patients}, "
                f"and a patient is never cut in two; set data.phantom.num_patients: {10 * clients}, or fewer clients"
            )
    if isinstance(partition, ColumnPartition) and partition.leave_out:
        if partition.column != "site":
            yield f"partition.leave_out names sites, but partition.column = {partition.column}; set column: site"
        own, cure = None, ""
        if isinstance(config.algorithm, OWN_MODELS):
            own, cure = f"algorithm.name = {config.algorithm.name}", "another algorithm.name, or remove leave_out"
        elif config.aggregation.local_blocks and not isinstance(config.algorithm, POOLED):
            own = f"aggregation.local_blocks = {shown(config.aggregation.local_blocks)}"
            cure = "aggregation.local_blocks: []"
        if own:
            yield (
                f"partition.leave_out = {shown(partition.leave_out)} with {own}: a site that never trains has no "
                f"weights of its own to be evaluated with; set {cure}"
            )
    size = config.cohort.size
    idle = isinstance(config.algorithm, (LocalConfig, *POOLED))  # said already
    if clients is not None and size is not None and size > clients and not idle:
        yield f"cohort.size = {size} but {source} = {clients}; set cohort.size: {clients} or less, or remove it for all"


def _local_blocks(config: RunConfig) -> Iterator[str]:
    if not isinstance(config.algorithm, (LocalConfig, *POOLED)):  # said already
        yield from unmatched_local_blocks(config)


def _pixels(config: RunConfig) -> Iterator[str]:
    data = config.data
    for key in ("image_mean", "image_std"):
        if not getattr(data, key):
            yield f"data.{key} = []: no value; give one for all channels, or one for each"
    mean, std = len(data.image_mean), len(data.image_std)
    if min(mean, std) > 1 and mean != std:
        yield f"data.image_mean has {mean} values but data.image_std has {std}; give one each, or one for each channel"
    if any(value <= 0 for value in data.image_std):
        yield f"data.image_std = {shown(list(data.image_std))}: pictures are divided by it; every value must be > 0"
    if data.phantom is not None and data.max_tokens is not None and data.max_tokens > data.phantom.max_tokens:
        yield (
            f"data.max_tokens = {data.max_tokens} cuts nothing, data.phantom.max_tokens = {data.phantom.max_tokens}; "
            f"remove it, or set data.phantom.max_tokens: {data.max_tokens}"
        )


def _model(config: RunConfig) -> Iterator[str]:
    model, size = config.model, config.fit.batch_size
    if not isinstance(model, DualEncoderConfig):
        if config.data.label is None:
            yield f"data.label is not set but model.kind is {model.kind}; set data.label to the column to be learned"
        return
    if size < 2:
        norm = ", and head_norm: batch cannot normalise it" if model.head_norm == "batch" else ""
        yield f"fit.batch_size = {size}: a single pair cannot be told apart from others{norm}; set 2 or more"
    if config.evaluation.match == []:
        yield "evaluation.match = []: every item would count as correct; name label columns, or null for identical text"
    if model.align:
        yield from _align_heads(model)


def _objective(config: RunConfig) -> Iterator[str]:
    objective = config.objective
    if objective is None:
        return
    line = f"objective.name = {objective.name} but model.kind = {config.model.kind}"
    if isinstance(config.model, JointConfig) or isinstance(objective, MvpConfig):
        return  # checks_joint
    if not isinstance(config.model, DualEncoderConfig) and not isinstance(objective, CrossEntropyConfig):
        reads = "reads no text" if isinstance(config.model, ClassifierConfig) else "learns classes"
        yield f"{line}, which {reads}; set objective.name: cross_entropy, or model.kind: dual_encoder"
    if isinstance(config.model, DualEncoderConfig) and isinstance(objective, CrossEntropyConfig):
        yield (
            f"{line}, which knows no classes; set objective.name: clip, convirt, siglip or gloria, "
            "or model.kind: classifier"
        )


def _align_heads(model: DualEncoderConfig) -> Iterator[str]:
    """Only widths that stand in the config; the model itself refuses the others when it is built."""
    for name, key in (("image", "embed_dim"), ("text", "hidden_size")):
        width = getattr(model, name).options.get(key)
        if isinstance(width, int) and width % model.align_heads:
            fits = max(heads for heads in range(1, model.align_heads + 1) if width % heads == 0)
            yield (
                f"model.align_heads = {model.align_heads} does not divide model.{name}.options.{key} = {width}; "
                f"set model.align_heads: {fits}"
            )


def _rounds(config: RunConfig) -> Iterator[str]:
    optimizer, every = config.fit.optimizer, config.evaluation.every
    if optimizer.warmup_rounds > config.rounds:
        yield (
            f"fit.optimizer.warmup_rounds = {optimizer.warmup_rounds:g} but rounds = {config.rounds}: "
            f"the learning rate would never arrive; set warmup_rounds: {config.rounds / 10:g}, or more rounds"
        )
    if every is not None and every > config.rounds:
        yield (
            f"evaluation.every = {every} but rounds = {config.rounds}: nothing would be evaluated before the end; "
            f"set evaluation.every: {config.rounds} or less, or null"
        )
    if any(not 0 <= beta < 1 for beta in optimizer.betas):
        yield f"fit.optimizer.betas = {shown(list(optimizer.betas))}: each must be >= 0 and < 1, as in [0.9, 0.999]"


def _feddra(config: RunConfig) -> Iterator[str]:
    algorithm = config.algorithm
    if not isinstance(algorithm, FedDRAConfig):
        return
    if not isinstance(config.model, DualEncoderConfig):
        yield (
            f"algorithm.name = feddra but model.kind = {config.model.kind}: it aligns pictures with text; "
            "set model.kind: dual_encoder, or algorithm.name: afl for robust weights over classifiers"
        )
    if algorithm.schedule == "sequential":
        given = algorithm.stage1_rounds
        if given is None or given >= config.rounds:
            yield (
                f"algorithm.schedule = sequential with stage1_rounds = {shown(given)} and rounds = {config.rounds}: "
                f"stage 2 would never be reached at a known round; set algorithm.stage1_rounds: "
                f"{max(1, config.rounds // 3)}"
            )
    dro, optimizer = algorithm.dro, config.fit.optimizer.name
    if dro is not None and dro.apply == "loss_scale" and optimizer != "sgd" and algorithm.variant == "sound":
        yield (
            f"algorithm.dro.apply = loss_scale but fit.optimizer.name = {optimizer}: its step does not change with a "
            "scaled loss, so the weights would do nothing; set dro.apply: aggregate or lr_scale, or optimizer.name: sgd"
        )
    objective = "clip" if config.objective is None else config.objective.name
    if dro is not None and dro.loss_baseline == "duplicates" and objective != "clip":
        yield (
            f"algorithm.dro.loss_baseline = duplicates but objective.name = {objective}: what duplicates cost is known "
            "for clip only; set loss_baseline: first, or objective: null"
        )


def _plain_sgd(config: RunConfig) -> Iterator[str]:
    """Methods that read gradients off how far the weights went."""
    algorithm, optimizer = config.algorithm, config.fit.optimizer
    if isinstance(algorithm, ScaffoldConfig) and optimizer.name != "sgd":
        yield (
            f"fit.optimizer.name = {optimizer.name} but algorithm.name = scaffold, whose variates are means of the "
            "gradients that plain SGD went by; set fit.optimizer.name: sgd and a learning_rate for it"
        )
    elif isinstance(algorithm, ScaffoldConfig) and optimizer.momentum:
        yield (
            f"fit.optimizer.momentum = {optimizer.momentum:g} but algorithm.name = scaffold, whose variates are means "
            "of the gradients that plain SGD went by; set momentum: 0"
        )
    if isinstance(algorithm, QfflConfig) and algorithm.q and algorithm.lipschitz is None and optimizer.name != "sgd":
        yield (
            f"fit.optimizer.name = {optimizer.name} but algorithm.name = qffl, whose default L = 1 / learning_rate "
            "means SGD; set fit.optimizer.name: sgd, or algorithm.lipschitz to a tuned value"
        )


def _ranks(config: RunConfig, world_size: int) -> Iterator[str]:
    shard = config.mesh.shard
    if world_size < 1:
        yield f"WORLD_SIZE = {world_size}; start at least {shard} rank{'s' if shard > 1 else ''}"
    elif world_size % shard:
        slots = math.ceil(world_size / shard)
        yield (
            f"client({slots}) * shard({shard}) = {slots * shard} but WORLD_SIZE = {world_size}; "
            f"set mesh.shard: 1, or start {slots * shard} ranks"
        )

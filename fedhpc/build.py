"""From a config to everything that a rank needs for its run."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import fedhpc
from fedhpc.algorithms.objectives import build_loss
from fedhpc.algorithms.registry import build_algorithm
from fedhpc.client.client import derived_seed, num_steps
from fedhpc.client.engine import ClientEngine, Engine
from fedhpc.client.private_rows import RowGradients
from fedhpc.client.slot import Slot
from fedhpc.comm.collectives import Collectives
from fedhpc.comm.ledger import Ledger
from fedhpc.comm.privacy import ClientGuard
from fedhpc.comm.secure import Masks
from fedhpc.comm.sums import Sums
from fedhpc.completion.features import with_features
from fedhpc.completion.parts import Ranks
from fedhpc.config.algorithms import ON_PUBLIC_DATA, OWN_MODELS, POOLED
from fedhpc.config.privacy import ClientPrivacyConfig, RecordPrivacyConfig
from fedhpc.config.schema import ClassifierConfig, FusionConfig, RunConfig
from fedhpc.data.batches import BatchMaker
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.public import public_batches, public_path
from fedhpc.data.select import data_spec, public_rows
from fedhpc.data.tabular import num_columns
from fedhpc.examples import Scorer, examples_of
from fedhpc.federation.aggregation import build_aggregation, refuse_small_rounds
from fedhpc.federation.attack import build_attack
from fedhpc.federation.checkpoint import Checkpoints
from fedhpc.federation.cohort import cohort_size, refuse_short_rounds
from fedhpc.federation.federation import SlotFederation
from fedhpc.federation.rounds import DATA, Run
from fedhpc.interfaces import Algorithm, Batch, ClientId, DataSpec
from fedhpc.models.zoo import build_model, build_networks
from fedhpc.population import Population, check_losses, idle_ranks, populate
from fedhpc.privacy.secret import noise_source
from fedhpc.privacy.wiring import build_guard, build_spending
from fedhpc.report.reporter import RunReporter, SilentReporter
from fedhpc.report.shown import SHOWN
from fedhpc.runtime import Runtime

logger = logging.getLogger(__name__)


def build(
    config: RunConfig, packed: PackedFile, runtime: Runtime, run_dir: Path, accept_changes: bool = False
) -> tuple[Run, Mapping[ClientId, str], Callable[[], None]]:
    """Every rank calls this; all is the same on every rank but for what it hosts.

    Args:
        accept_changes: resume on data whose content is another.

    Returns:
        The run, names of those that are evaluated, and what closes the report.

    Raises:
        ValueError: config, data and ranks do not fit together.
    """
    device, own_dir = runtime.device, run_dir if runtime.is_first else None
    algorithm: Algorithm = build_algorithm(config.algorithm)
    # --- the cluster
    collectives = Collectives(runtime.mesh, Ledger(), config.aggregation.bucket_mib << 20)
    # --- who takes part
    spec = data_spec(packed, config)
    check_pixels(config, spec)
    nothing = torch.zeros(1, dtype=torch.int64, device=device)
    ranks = Ranks(runtime.mesh.rank, runtime.mesh.world, lambda: collectives.all_ranks_sum(nothing))
    who = populate(config, packed, spec, device, ranks, own_dir)
    check_losses(algorithm, config.algorithm.name, [who.records[c] for c in who.trainers])
    trainers, cohort = who.trainers, cohort_size(config.cohort, len(who.trainers))
    if runtime.is_first and (idle := idle_ranks(runtime.mesh, cohort)) is not None:
        logger.warning(idle)
    # --- what leaves a client, and how
    source = None if config.privacy is None else noise_source(config, packed.checksum, fedhpc.__version__)
    guard = build_guard(config, source, cohort)
    sums = build_sums(config, collectives, guard)
    rows = {c: len(who.records[c].rows.train) for c in trainers}
    spending = build_spending(config, trainers, cohort, rows, {c: num_steps(config.fit, n) for c, n in rows.items()})
    cohort_seed = config.random_seed
    if isinstance(config.privacy, ClientPrivacyConfig) and config.privacy.amplification and source is not None:
        cohort_seed = source.integer("cohorts")
    least = max(1 if sums.masks is None else sums.masks.min_contributors, 1 if guard is None else guard.shares)
    refuse_short_rounds(trainers, config.cohort, cohort_seed, config.rounds, least, sums.masks is not None)
    robust = config.aggregation.robust
    refuse_small_rounds(robust, trainers, config.cohort, cohort_seed, config.rounds)
    aggregation = build_aggregation(config.aggregation, sums, config.random_seed)
    attack = build_attack(config.attack, trainers, config.random_seed)
    # --- the model and its data
    if who.holdings is not None:
        assert isinstance(config.model, FusionConfig)
        widths = {m: num_columns(packed, config.model, m) for m in config.model.tabular}
        spec = replace(spec, fusion=replace(who.holdings.spec, columns=widths))
    local_blocks = [*config.aggregation.local_blocks, *(who.holdings.private if who.holdings is not None else ())]
    engines = build_engines(config, spec, runtime, local_blocks)
    if source is not None and isinstance(config.privacy, RecordPrivacyConfig):
        for engine in engines:
            assert isinstance(engine, Engine), "checks refuse record-level privacy with sharding"
            clip, noise = config.privacy.clip, config.privacy.noise_multiplier
            engine.rows = RowGradients(engine.module, engine.loss, clip, noise, source)
    examples = examples_of(config, packed, who, sums, device, own_dir)
    maker = BatchMaker(examples.source(config), config.data, device, config.fit.channels_last)
    public: list[Batch] = []
    if isinstance(config.algorithm, ON_PUBLIC_DATA):
        public = public_batches(packed, config, spec, public_rows(packed, config), device)
        public = with_features(engines[0], public, config)
    keep = keeps_optimizer(config)
    owing = aggregation is not None and aggregation.keeps_residuals
    stateful = algorithm.stateful or keep or bool(local_blocks) or owing
    slot = Slot(engines, maker, who.records, config.random_seed, config.rounds, keep, stateful, examples.scorer)
    # --- what algorithms see
    fed = SlotFederation(
        slot,
        collectives,
        sums,
        trainers,
        config.cohort,
        config.random_seed,
        stateful,
        algorithm.reveals,
        public,
        cohort_seed,
        aggregation,
        attack,
    )
    # --- what people see
    reporter = build_reporter(config, who, examples.scorer, own_dir)

    def locate(where: str) -> None:
        runtime.where[0] = where

    run = Run(
        config,
        fed,
        algorithm,
        Checkpoints(run_dir / "checkpoints", config.checkpoint.keep, collectives, device),
        reporter,
        examples.scorer.names,
        who.evaluated,
        who.aside,
        {
            "versions": versions(),
            "ranks": runtime.mesh.world,
            "threads_per_rank": config.runtime.threads_per_rank,
            DATA: checksums(packed, config),
        },
        runtime.must_stop,
        locate,
        spending,
        accept_changes,
    )
    return run, who.sites, reporter.close


def checksums(packed: PackedFile, config: RunConfig) -> dict[str, str]:
    """Config key of each packed file that the run reads -> checksum of its content."""
    path = None if config.public is None else public_path(config.public)
    if path is None:
        return {"data.path": packed.checksum}
    with PackedFile(path) as public:
        return {"data.path": packed.checksum, "public.path": public.checksum}


def build_sums(config: RunConfig, collectives: Collectives, guard: ClientGuard | None = None) -> Sums:
    """Plain, or masked; with noise, or without metrics, under privacy."""
    how = config.aggregation
    least = how.min_contributors if guard is None else max(how.min_contributors, guard.shares)
    masks = Masks(collectives, least, config.random_seed) if how.secure else None
    withhold = config.privacy is not None
    return Sums(collectives, how.arithmetic, how.fraction_bits, how.ring_bits, masks, guard, withhold)


def build_engines(
    config: RunConfig, spec: DataSpec, runtime: Runtime, local_blocks: Sequence[str]
) -> list[ClientEngine]:
    """One for all clients, or one for each of model.networks, which starts from weights of its own; on this rank's
    device, or on those of all ranks of its slot."""
    loss, model = build_loss(config), config.model

    def module(*item: int) -> nn.Module:
        torch.manual_seed(derived_seed(config.random_seed, "model", *item))
        if item:
            assert isinstance(model, ClassifierConfig)
            return build_networks(model, spec, *item)
        return build_model(model, spec, config.objective)

    if config.sharding is not None:
        runtime.ready_for_deepspeed()
        from fedhpc.client.zero import ZeroEngine  # takes seconds to import

        return [ZeroEngine(module, loss, config.fit, config.sharding, runtime.device, runtime.mesh)]
    several = model.networks if isinstance(model, ClassifierConfig) else None
    items = [()] if several is None else [(item,) for item in range(len(several))]
    return [Engine(module(*item), loss, config.fit, runtime.device, local_blocks) for item in items]


def build_reporter(
    config: RunConfig, who: Population, scorer: Scorer, run_dir: Path | None
) -> RunReporter | SilentReporter:
    """run_dir: None on ranks that say nothing."""
    if run_dir is None:
        return SilentReporter()
    shown = {metric: heading for metric, heading in SHOWN[config.model.kind].items() if metric in scorer.names}
    count = len(who.evaluated)
    names = [who.sites[c] for c in who.evaluated] if config.shows_clients else [f"mean of {count} clients"]
    return RunReporter(run_dir, config, names, shown)


def keeps_optimizer(config: RunConfig) -> bool:
    """Whether moments of optimizers stay with clients from round to round."""
    if config.fit.optimizer.keep_state is not None:
        return config.fit.optimizer.keep_state
    upstream = getattr(config.algorithm, "variant", "sound") == "upstream"
    return isinstance(config.algorithm, (*POOLED, *OWN_MODELS)) and not upstream


def check_pixels(config: RunConfig, spec: DataSpec) -> None:
    """Raises ValueError when means or deviations are given for other channels than the file's."""
    for key in ("image_mean", "image_std"):
        given = len(getattr(config.data, key))
        if given not in (1, spec.image_channels):
            raise ValueError(
                f"data.{key} has {given} values, the pictures have {spec.image_channels} channels; give one value, or "
                "one for each channel"
            )


def versions() -> dict[str, str]:
    return {"fedhpc": fedhpc.__version__, "torch": torch.__version__, "python": platform.python_version()}

"""RunTask: a resolved run. Calling it plays one rank, from the packed file to the final table."""

from __future__ import annotations

import fcntl
import gc
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fedhpc
from fedhpc.algorithms.objectives import build_loss
from fedhpc.algorithms.registry import build_algorithm
from fedhpc.client.client import ClientRecord, Rows, derived_seed
from fedhpc.client.engine import ClientEngine, Engine
from fedhpc.client.slot import Slot
from fedhpc.comm.collectives import Collectives, RankLost
from fedhpc.comm.ledger import Ledger
from fedhpc.comm.secure import Masks
from fedhpc.comm.sums import Sums
from fedhpc.completion.features import with_features
from fedhpc.completion.parts import Ranks
from fedhpc.completion.prepare import prepare
from fedhpc.completion.reader import JointReader
from fedhpc.config.algorithms import ON_PUBLIC_DATA, OWN_MODELS, POOLED
from fedhpc.config.schema import ClassifierConfig, FusionConfig, JointConfig, RunConfig
from fedhpc.data.batches import BatchMaker, Source
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.missing import FILE as MISSING
from fedhpc.data.missing import draw_lost, without_lost, write_missing
from fedhpc.data.modalities import hold
from fedhpc.data.noise import FILE as NOISY_LABELS
from fedhpc.data.noise import noisy_labels, write_noise
from fedhpc.data.packers.phantom import ensure_phantom
from fedhpc.data.partition import ClientRows
from fedhpc.data.public import public_batches
from fedhpc.data.select import client_rows, data_spec, label_column, match_groups, public_rows, unseen_clients
from fedhpc.data.tabular import num_columns
from fedhpc.federation.checkpoint import Checkpoints
from fedhpc.federation.cohort import refuse_short_rounds
from fedhpc.federation.digest import final_sha256
from fedhpc.federation.evaluate import ClassificationScorer, JointScorer, RetrievalScorer, summarise
from fedhpc.federation.federation import SlotFederation
from fedhpc.federation.modalities import fusion_columns
from fedhpc.federation.rounds import Run, run_rounds, summary
from fedhpc.interfaces import Algorithm, Batch, ClientId, DataSpec
from fedhpc.models.zoo import build_model, build_networks
from fedhpc.process import Stop, settle
from fedhpc.report.plots import draw
from fedhpc.report.reporter import RunReporter, SilentReporter
from fedhpc.report.shown import SHOWN, UNSEEN
from fedhpc.run_folder import refuse_other_config, write_config
from fedhpc.runtime import Runtime

COMBINATION = "all rows, "  # begins the names of what is evaluated on the rows of all clients


@dataclass(frozen=True)
class RunTask:
    """Picklable: what to run, and where its files go.

    Attributes:
        accept_changes: resume although the config differs from the one that the run folder began with.
    """

    config: RunConfig
    run_dir: Path
    accept_changes: bool = False

    def __call__(self, stop: Stop | None = None) -> dict[str, Any]:
        """Play this process's rank. Returns the results, the same on every rank.

        Args:
            stop: made earlier, so that a signal since then is not lost.

        Raises:
            ValueError: config, data and ranks do not fit together.
            Preempted: asked to stop; a checkpoint is written.
            RankLost: another rank died; its number is in the message.
        """
        with Runtime.start(self.config.runtime, self.config.mesh, self.run_dir, stop) as runtime:
            lock = _open_run_dir(self, runtime) if runtime.is_first else None
            try:
                return self._play(runtime)
            except RankLost as error:
                if runtime.liveness is None:
                    raise
                refused = runtime.liveness.refusal()
                if refused:
                    raise ValueError(refused) from error
                raise RankLost(f"{runtime.liveness.diagnose()}. First sign: {error}") from error
            finally:
                if lock is not None:
                    lock.close()

    def checkpoint(self) -> Any:
        """What submitit asks when it queues a job again: the same run, which goes on from its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _play(self, runtime: Runtime) -> dict[str, Any]:
        config = self.config
        started = time.perf_counter()
        path = data_path(config)
        with PackedFile(path) as packed:
            run, sites, close_report = build(config, packed, runtime, self.run_dir)
            settle()
            try:
                per_client = run_rounds(run)
                run.locate("the digest")
                sha = final_sha256(run.fed, run.algorithm, run.evaluated)
            finally:
                gc.unfreeze()
                close_report()
            records = run.fed.slot.records
            results: dict[str, Any] = {
                "name": config.name,
                "algorithm": config.algorithm.name,
                "rounds": config.rounds,
                "random_seed": config.random_seed,
                "split": config.evaluation.final_split,
                "clients": [
                    {"name": sites[c], "train_rows": len(records[c].rows.train), "metrics": metrics}
                    for c, metrics in (zip(run.evaluated, per_client, strict=True) if config.shows_clients else ())
                ],
                "summary": summary(run, per_client),
                "combinations": combination_summary(run, sites, per_client),
                "sha256": sha,
                "sha256_of": "shared" if run.algorithm.shared else "clients",
                "data": {
                    "path": str(path),
                    "name": packed.name,
                    "checksum": packed.checksum,
                    "generated": packed.generated,
                },
                "seconds": time.perf_counter() - started,
                "versions": versions(),
                "ranks": runtime.mesh.world,
            }
        if isinstance(run.reporter, RunReporter):
            run.reporter.finish(results, run.fed.collectives.ledger.close_round(config.rounds))
            if config.report.plots:
                draw(self.run_dir, list(SHOWN[config.model.kind]))
        return results


def data_path(config: RunConfig) -> Path:
    """The packed file; generated first where the config says so. Safe when all ranks do it at once."""
    if config.data.phantom is not None:
        return ensure_phantom(config.data.phantom, config.data.path)
    assert config.data.path is not None, "the schema demands one of them"
    return config.data.path


def build(
    config: RunConfig, packed: PackedFile, runtime: Runtime, run_dir: Path
) -> tuple[Run, dict[ClientId, str], Any]:
    """Everything that a rank needs, the same on every rank but for what it hosts."""
    device = runtime.device
    algorithm: Algorithm = build_algorithm(config.algorithm)
    # --- who holds what
    dealt = client_rows(packed, config)
    # --- the cluster
    ledger = Ledger()
    collectives = Collectives(runtime.mesh, ledger, config.aggregation.bucket_mib << 20)
    sums = build_sums(config, collectives)
    # --- what their rows lack
    spec = data_spec(packed, config)
    check_pixels(config, spec)
    lost, whole, prepared = draw_lost(config, packed, dealt), dealt, None
    if isinstance(config.model, JointConfig):
        nothing = torch.zeros(1, dtype=torch.int64, device=device)
        ranks = Ranks(runtime.mesh.rank, runtime.mesh.world, lambda: collectives.all_sum(nothing))
        prepared = prepare(config, packed, spec, dealt, lost, device, ranks)
        dealt = prepared.clients
    elif lost:
        dealt = without_lost(config, dealt, lost)
    if lost and runtime.is_first:
        write_missing(run_dir / MISSING, whole, lost, {} if prepared is None else prepared.completed, dealt)
    holdings = hold(packed, config, dealt) if isinstance(config.model, FusionConfig) else None
    if holdings is not None:
        dealt = holdings.clients
    sites = {c.id: c.site for c in dealt}
    modalities = frozenset(packed.modalities)
    records = {c.id: client_record(c, modalities) for c in dealt}
    unseen = unseen_clients(config, dealt)
    combinations: Sequence[ClientId] = ()
    if holdings is not None:
        for c in records:
            records[c] = replace(records[c], modalities=frozenset(holdings.of_client[c]))
            sites[c] = f"{sites[c]} ({'+'.join(holdings.of_client[c])})"
        combinations = tuple(c.id for c in holdings.evaluated)
        records |= {c.id: client_record(c, frozenset(c.site.split("+"))) for c in holdings.evaluated}
        sites |= {c.id: f"{COMBINATION}{c.site}" for c in holdings.evaluated}
    evaluated = tuple(records)
    sites |= {c: f"{sites[c]}{UNSEEN}" for c in unseen}
    trainers: Sequence[ClientId] = tuple(c for c in evaluated if c not in unseen and c not in combinations)
    owners = {c: records[c] for c in trainers}
    if isinstance(config.algorithm, POOLED):
        held = frozenset(config.model.modalities) if isinstance(config.model, FusionConfig) else modalities
        everything, val = (torch.cat([records[c].rows.of(s) for c in trainers]).sort().values for s in ("train", "val"))
        trainers = (len(records),)
        none = torch.empty(0, dtype=torch.int64)
        rows = Rows(everything, val if holdings is not None else none, none)
        records[trainers[0]] = ClientRecord(trainers[0], "all", rows, held)
    check_losses(algorithm, config.algorithm.name, [records[c] for c in trainers])
    keep_optimizer = config.fit.optimizer.keep_state
    if keep_optimizer is None:
        upstream = getattr(config.algorithm, "variant", "sound") == "upstream"
        own = isinstance(config.algorithm, (*POOLED, *OWN_MODELS))
        keep_optimizer = own and not upstream
    local_blocks = [*config.aggregation.local_blocks, *(holdings.private if holdings is not None else ())]
    stateful = algorithm.stateful or keep_optimizer or bool(local_blocks)
    least = 1 if sums.masks is None else sums.masks.min_contributors
    refuse_short_rounds(trainers, config.cohort, config.random_seed, config.rounds, least, sums.masks is not None)
    # --- the model and its data
    if holdings is not None:
        assert isinstance(config.model, FusionConfig)
        widths = {m: num_columns(packed, config.model, m) for m in config.model.tabular}
        spec = replace(spec, fusion=replace(holdings.spec, columns=widths))
    engines = build_engines(config, spec, runtime, local_blocks)
    scorer: RetrievalScorer | ClassificationScorer | JointScorer
    given: dict[str, torch.Tensor] = {}
    reader: PackedFile | JointReader = packed
    if prepared is not None:
        assert isinstance(config.model, JointConfig)
        reader, columns, given = prepared.reader, prepared.columns, prepared.given
        label = torch.from_numpy(packed.read(columns["label"])).long()
        scorer = JointScorer(label, config.model.modalities)
    elif isinstance(config.model, FusionConfig):
        of_modality = {
            m: {c: r.rows.train for c, r in owners.items() if m in r.modalities} for m in config.model.modalities
        }
        columns, given = fusion_columns(packed, config, of_modality, sums, device)
        column = f"label/{label_column(packed, config)}"
        columns["label"] = column
        _, patient = np.unique(packed.patients(), return_inverse=True)
        target, patients = torch.from_numpy(packed.read(column)).long(), torch.from_numpy(patient)
        scorer = ClassificationScorer(target, patients, config.evaluation.num_resamples)
    elif isinstance(config.model, ClassifierConfig):
        column = f"label/{label_column(packed, config)}"
        columns = {"image": "image", "label": column}
        scorer = ClassificationScorer(torch.from_numpy(packed.read(column)).long())
        if config.noise is not None:
            given["label"] = trained_labels(config, packed, dealt, run_dir if runtime.is_first else None)
    else:
        columns = {"image": "image", "tokens": "tokens"}
        group = torch.from_numpy(match_groups(packed, config.evaluation.match))
        scorer = RetrievalScorer(group, config.evaluation.batch_size)
    source = Source(reader, columns, config.data.memory_mib, given)
    maker = BatchMaker(source, config.data, device, config.fit.channels_last)
    public: list[Batch] = []
    if isinstance(config.algorithm, ON_PUBLIC_DATA):
        public = public_batches(packed, config, spec, public_rows(packed, config), device)
        public = with_features(engines[0], public, config)
    slot = Slot(engines, maker, records, config.random_seed, config.rounds, keep_optimizer, stateful, scorer)
    # --- what algorithms see
    fed = SlotFederation(
        slot, collectives, sums, trainers, config.cohort, config.random_seed, stateful, algorithm.reveals, public
    )
    # --- what people see
    reporter: RunReporter | SilentReporter = SilentReporter()
    if runtime.is_first:
        shown = {metric: heading for metric, heading in SHOWN[config.model.kind].items() if metric in scorer.names}
        names = [sites[c] for c in evaluated] if config.shows_clients else [f"mean of {len(evaluated)} clients"]
        reporter = RunReporter(run_dir, config, names, shown)

    def locate(where: str) -> None:
        runtime.where[0] = where

    run = Run(
        config,
        fed,
        algorithm,
        Checkpoints(run_dir / "checkpoints", config.checkpoint.keep, collectives, device),
        reporter,
        scorer.names,
        evaluated,
        unseen | frozenset(combinations),
        {"versions": versions(), "ranks": runtime.mesh.world, "threads_per_rank": config.runtime.threads_per_rank},
        runtime.must_stop,
        locate,
    )
    return run, sites, reporter.close


def build_sums(config: RunConfig, collectives: Collectives) -> Sums:
    """Plain, or masked."""
    how = config.aggregation
    masks = Masks(collectives, how.min_contributors, config.random_seed) if how.secure else None
    return Sums(collectives, how.arithmetic, how.fraction_bits, how.ring_bits, masks)


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


def trained_labels(
    config: RunConfig, packed: PackedFile, dealt: Sequence[ClientRows], run_dir: Path | None
) -> torch.Tensor:
    """data.label with config.noise in the clients' training rows, int32 [rows of the file]; run_dir gets a list."""
    assert config.noise is not None
    column = label_column(packed, config)
    labels, classes = packed.read(f"label/{column}"), packed.label_classes[column]
    noisy = noisy_labels(config.noise, labels, classes, dealt, config.random_seed)
    if run_dir is not None:
        write_noise(run_dir / NOISY_LABELS, labels, noisy, classes, dealt)
    return torch.from_numpy(noisy)


def combination_summary(
    run: Run, sites: Mapping[ClientId, str], per_client: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Of a classifier over several modalities: each combination's metrics on the held-out rows of all clients, and
    their mean, worst and best. Empty for other models."""
    if not isinstance(run.config.model, FusionConfig):
        return {}
    rows = {
        sites[c].removeprefix(COMBINATION): metrics
        for c, metrics in zip(run.evaluated, per_client, strict=True)
        if sites[c].startswith(COMBINATION)
    }
    return {"of": rows, "summary": summarise(list(rows.values()), run.metric_names)}


def client_record(client: ClientRows, modalities: frozenset[str]) -> ClientRecord:
    rows = Rows(*(torch.from_numpy(r) for r in (client.train, client.val, client.test)))
    return ClientRecord(client.id, client.site, rows, modalities)


def check_pixels(config: RunConfig, spec: DataSpec) -> None:
    """Raises ValueError when means or deviations are given for other channels than the file's."""
    for key in ("image_mean", "image_std"):
        given = len(getattr(config.data, key))
        if given not in (1, spec.image_channels):
            raise ValueError(
                f"data.{key} has {given} values, the pictures have {spec.image_channels} channels; give one value, or "
                "one for each channel"
            )


def check_losses(algorithm: Algorithm, name: str, trainers: Sequence[ClientRecord]) -> None:
    """Raises ValueError when the algorithm measures every client's loss on a split where one has fewer than 2 rows."""
    split = algorithm.losses_on
    if split is None:
        return
    counts = [(record, len(record.rows.of(split))) for record in trainers]
    short = [f"client {record.id} ({record.site}) has {rows}" for record, rows in counts if rows < 2]
    if short:
        other = "" if split == "train" else "set loss_split: train in the algorithm's section, "
        sites = ", ".join(record.site for record, rows in counts if rows < 2)
        raise ValueError(
            f"algorithm.name: {name} measures the loss of every client on its {split} rows, 2 at least, but "
            f"{', '.join(short[:5])}{f' and {len(short) - 5} more' if len(short) > 5 else ''}; "
            f"{other}set a partition of fewer, larger clients, or - where clients are sites - "
            f"partition.leave_out: [{sites}]"
        )


def versions() -> dict[str, str]:
    return {"fedhpc": fedhpc.__version__, "torch": torch.__version__, "python": platform.python_version()}


# ------------------------------------------------------------------------------------------------------- run folders
def _open_run_dir(task: RunTask, runtime: Runtime) -> Any:
    """Lock the folder, compare with the config that it began with, write the config. Rank 0 only."""
    folder = task.run_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ValueError(f"the run folder {folder} cannot be written: {error}; set --run-dir") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ValueError(f"another process is running in {folder}; wait for it, or set another --run-dir") from error
    except OSError:  # a file system without locks: nothing to compare with
        print(f"fedhpc: {folder} has no file locks, so two runs in it at once would not be noticed", file=sys.stderr)
    if not task.accept_changes:
        refuse_other_config(folder, task.config)
    write_config(folder, task.config)
    return lock

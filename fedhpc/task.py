"""RunTask: a resolved run. Calling it plays one rank, from the packed file to the final table."""

from __future__ import annotations

import fcntl
import gc
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.build import build, versions
from fedhpc.comm.collectives import RankLost
from fedhpc.config.schema import FusionConfig, RunConfig
from fedhpc.data.attack import attackers
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.phantom import ensure_phantom
from fedhpc.federation.digest import final_sha256
from fedhpc.federation.evaluate import summarise
from fedhpc.federation.rounds import Run, run_rounds, summary
from fedhpc.interfaces import ClientId
from fedhpc.population import COMBINATION
from fedhpc.privacy.wiring import privacy_results
from fedhpc.process import Stop, settle
from fedhpc.report.plots import draw
from fedhpc.report.reporter import RunReporter
from fedhpc.report.shown import SHOWN
from fedhpc.run_folder import refuse_other_config, write_config
from fedhpc.runtime import Runtime


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
            run, sites, close_report = build(config, packed, runtime, self.run_dir, self.accept_changes)
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
                "privacy": privacy_results(config, run.spending, run.fed.guard),
            }
            if config.attack is not None:  # no such run is to be taken for a real one
                who = attackers(config.attack, run.fed.clients, config.random_seed)
                results["attack"] = {"kind": config.attack.kind, "clients": sorted(who)}
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

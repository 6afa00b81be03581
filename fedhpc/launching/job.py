"""What a job of `fedhpc submit` runs: submitit pickles a SubmittedRun here and calls it in every rank there.

Imports no torch: submitting takes no longer than it must.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fedhpc.config.schema import RunConfig
from fedhpc.exit_codes import EXIT_PREEMPTED, EXIT_RANK_LOST, EXIT_USER_ERROR
from fedhpc.launching import journal, slurm
from fedhpc.launching.journal import Limits
from fedhpc.run_folder import rounds_done


class NotAgain(Exception):
    """The job must not be queued again; the message says why."""


@dataclass
class SubmittedRun:
    """One run as a job. It plays one rank in each process, and goes on after being stopped.

    Attributes:
        limits: how often the job may be queued again.
    """

    config: RunConfig
    run_dir: Path
    limits: Limits
    accept_changes: bool = False

    def __call__(self) -> dict[str, Any]:
        """The run's results. Ends the process otherwise, with the exit codes of `fedhpc run`."""
        from fedhpc.comm.collectives import RankLost
        from fedhpc.runtime import USER_ERRORS, Preempted, leave, read_launch
        from fedhpc.task import RunTask

        launch = read_launch()
        name = f"fedhpc: rank {launch.rank}: "
        try:
            results = RunTask(self.config, self.run_dir, self.accept_changes)()
        except Preempted as stop:
            print(name + str(stop), file=sys.stderr, flush=True)
            if launch.rank == 0:
                _stop_and_requeue()
            leave(EXIT_PREEMPTED, f"{name}waits for the job to be queued again")
        except RankLost as error:
            leave(EXIT_RANK_LOST, name + str(error))
        except USER_ERRORS as error:
            leave(EXIT_USER_ERROR, name + str(error))
        if launch.rank == 0:
            print(f"shared sha256 {results['sha256']}", flush=True)
        return results

    def checkpoint(self) -> Any:
        """submitit asks for this before it queues the job again: what is to be called then.

        The run's state lies in its checkpoints. Raises NotAgain when the job was cancelled, or got nowhere too often.
        """
        from submitit.helpers import DelayedSubmission

        job = _job_id()
        done = rounds_done(self.run_dir)
        if slurm.is_cancelled(job):
            raise NotAgain(f"job {job} was cancelled")
        verdict = journal.verdict(self.run_dir, job, done, self.limits, failed=False)
        if not verdict.again:
            raise NotAgain(verdict.reason)
        journal.write(self.run_dir, "requeued", job, rounds_done=done, reason=verdict.reason, counts=verdict.counts)
        return DelayedSubmission(self)


def _job_id() -> str:
    import submitit

    return submitit.JobEnvironment().job_id


def _stop_and_requeue() -> NoReturn:
    """Hands over to submitit's handler of SIGUSR2, which stood back while the run looked for a safe point: it calls
    `checkpoint`, writes what comes back to where the job will look for it, and queues the job again. Rank 0 only."""
    from fedhpc.runtime import leave

    try:
        signal.raise_signal(signal.SIGUSR2)
    except SystemExit:  # its way to end; ours does not take the process group down in order
        leave(EXIT_PREEMPTED, "fedhpc: rank 0: queued again")
    except NotAgain as why:
        leave(EXIT_PREEMPTED, f"fedhpc: rank 0: not queued again: {why}")
    except (subprocess.SubprocessError, OSError) as error:
        leave(EXIT_PREEMPTED, f"fedhpc: rank 0: could not be queued again: {error}")
    leave(EXIT_PREEMPTED, "fedhpc: rank 0: not queued again: nothing handles SIGUSR2, so this is no job of submitit")

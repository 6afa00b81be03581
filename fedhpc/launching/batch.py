"""What the batch script of a submitted job calls around its ranks, on the job's first node:

    python -m fedhpc.launching.batch started TABLE INDEX JOB
    python -m fedhpc.launching.batch ended   TABLE INDEX JOB EXIT_CODE

TABLE is a JSON file: the run folders of the job (one for each task of an array, at INDEX) and how often they may go on.
A job whose ranks died (killed, out of memory, a lost node) is queued again from here: whoever was killed cannot do it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fedhpc.exit_codes import EXIT_RANK_LOST
from fedhpc.launching import journal, slurm
from fedhpc.launching.journal import Limits
from fedhpc.launching.logs import last_words
from fedhpc.run_folder import rounds_done

BY_SIGNAL = 128  # srun's exit code is 128 + the signal that killed a rank


def write_table(path: Path, folders: Sequence[Path], limits: Limits) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"max_restarts": limits.max_restarts, "soon_s": limits.soon_s, "folders": [str(f) for f in folders]}
    path.write_text(json.dumps(table, indent=1))


def read_table(path: Path, index: int) -> tuple[Path, Limits]:
    """The run folder at `index`, and the limits of the job."""
    table = json.loads(path.read_text())
    return Path(table["folders"][index]), Limits(table["max_restarts"], table["soon_s"])


def started(folder: Path, job: str) -> None:
    journal.write(folder, "started", job, rounds_done=rounds_done(folder))


def ended(folder: Path, job: str, code: int, limits: Limits) -> bool:
    """Whether the job is queued again now."""
    if journal.is_requeued(folder, job):  # by rank 0, when it was asked to stop
        return False
    done = rounds_done(folder)
    lost = code == EXIT_RANK_LOST or code > BY_SIGNAL
    reason = last_words(folder, job) if code else ""
    if lost and not slurm.is_cancelled(job):
        verdict = journal.verdict(folder, job, done, limits, failed=True)
        if verdict.again:
            journal.write(
                folder,
                "requeued",
                job,
                rounds_done=done,
                exit_code=code,
                reason=f"{verdict.reason}: {reason}",
                counts=True,
            )
            try:
                slurm.requeue(job)
            except slurm.SlurmError as error:
                reason = f"{reason}; could not be queued again: {error}"
            else:
                print(f"fedhpc: job {job} is queued again from round {done} ({verdict.reason})", flush=True)
                return True
        else:
            reason = f"{verdict.reason}: {reason}"
    journal.write(folder, "ended", job, rounds_done=done, exit_code=code, reason=reason)
    return False


def main(arguments: Sequence[str]) -> None:
    event, table, index, job, *code = arguments
    folder, limits = read_table(Path(table), int(index))
    if event == "started":
        started(folder, job)
    else:
        ended(folder, job, int(code[0]), limits)


if __name__ == "__main__":
    main(sys.argv[1:])

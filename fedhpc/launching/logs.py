"""Why a run ended, in its own words: the last thing that fedhpc said in its logs."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from fedhpc.launching import journal

SAYS = "fedhpc: "
NOT_THE_CAUSE = ("died or stopped answering", "waits for the job", "is queued again")  # said by those that are left
TAIL_BYTES = 64 * 1024
LONGEST = 300  # characters


def last_words(folder: Path, job: str) -> str:
    """Of the job's ranks; "" where they said nothing."""
    submitted = [launch for launch in journal.of_job(folder, job) if launch.event == "submitted"]
    return from_files(map(Path, sorted(glob.glob(submitted[-1].logs)))) if submitted and submitted[-1].logs else ""


def from_files(files: Iterable[Path]) -> str:
    """The last line of any file that names a cause; else of those that name a consequence."""
    said = [line for file in files if (line := _last_line(file))]
    causes = [line for line in said if not any(part in line for part in NOT_THE_CAUSE)]
    return (causes or said or [""])[-1]


def _last_line(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    lines = text.splitlines()
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith(SAYS):
            further = [line.strip() for line in lines[number + 1 :] if line.startswith("  ")]  # of a list of problems
            said = " ".join([lines[number].removeprefix(SAYS).strip(), *further[:2]])
            return said if len(said) <= LONGEST else f"{said[: LONGEST - 3]}..."
    return ""

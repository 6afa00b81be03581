"""python -m tests.fuzz --seconds 180 --seed 1 [--target hdf5]: fuzz the readers in turn, and say what was found.

Exit code 1 when a case ended in anything but a declared error. `--target T --seed S --case N` runs one case here, with
its traceback; `--log FILE` appends one JSON line a target.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import traceback
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.fuzz.harness import fuzz, rng_of
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=sorted(TARGETS), help="one of them only")
    parser.add_argument("--case", type=int, help="run this case in this process")
    parser.add_argument("--keep", type=Path, help="with --case: copy its files here")
    parser.add_argument("--log", type=Path, help="append what was found as JSON lines")
    options = parser.parse_args()
    chosen = [TARGETS[options.target]] if options.target else list(TARGETS.values())
    if options.case is not None:
        return show(chosen[0].name, options.seed, options.case, options.keep)
    failed = False
    for target in chosen:
        outcome = fuzz(target, options.seed, seconds=options.seconds / len(chosen))
        print(
            f"{target.name}: {outcome.cases} cases in {outcome.seconds:.0f} s, {outcome.accepted} read without an "
            f"error, {len(outcome.findings)} findings"
        )
        kinds = Counter((f.what.split(":")[0], f.where) for f in outcome.findings)
        for (what, where), count in kinds.most_common(20):
            first = next(f for f in outcome.findings if (f.what.split(":")[0], f.where) == (what, where))
            print(f"  {count} x {first.what}  [{where}]  first: --case {first.case}")
        if options.log is not None:
            line = {
                "when": datetime.now(UTC).isoformat(timespec="seconds"), "target": target.name, "seed": options.seed,
                "seconds": round(outcome.seconds, 1), "cases": outcome.cases, "accepted": outcome.accepted,
                "num_findings": len(outcome.findings), "findings": [asdict(f) for f in outcome.findings[:20]],
            }  # fmt: skip
            with options.log.open("a") as file:
                file.write(json.dumps(line) + "\n")
        failed |= bool(outcome.findings)
    return int(failed)


def show(name: str, seed: int, case: int, keep: Path | None) -> int:
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as scratch:
        seeds, folder = Path(scratch) / "seeds", Path(scratch) / "case"
        seeds.mkdir()
        folder.mkdir()
        target.prepare(seeds)
        target.damage(seeds, folder, rng_of(name, seed, case))
        if keep is not None:
            shutil.copytree(folder, keep, dirs_exist_ok=True)
        try:
            target.exercise(folder)
        except target.declared as error:
            print(f"declared: {type(error).__name__}: {error}")
            return 0
        except Exception:
            traceback.print_exc()
            return 1
    print("read without an error")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""metrics.jsonl, ledger.jsonl, TensorBoard, a progress bar; at the end results.json and a table. Rank 0 only."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedhpc.config.schema import RunConfig, Split
from fedhpc.report.tensorboard import Scalars

LOG_WIDTH = 140  # characters


class SilentReporter:
    """For every rank but the first."""

    def start(self, rounds_done: int) -> None: ...

    def say(self, line: str) -> None: ...

    def round(self, index: int, metrics: Mapping[str, float], page: Mapping[str, Any]) -> None: ...

    def evaluation(self, rounds_done: int, split: Split, per_client: Sequence[Mapping[str, float]]) -> None: ...

    def close(self) -> None: ...


class RunReporter:
    """Writes into a run folder.

    Args:
        clients: names of the evaluated clients, in order.
        shown: the metrics of the table, and their headings.
    """

    def __init__(self, folder: Path, config: RunConfig, clients: Sequence[str], shown: Mapping[str, str]) -> None:
        self._folder = folder
        self._config = config
        self._clients = clients
        self._shown = shown
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._scalars: Scalars | None = None
        self._last_line = 0.0

    def start(self, rounds_done: int) -> None:
        # Lines of rounds that are made again after a kill would stand there twice.
        for name in ("metrics.jsonl", "ledger.jsonl"):
            _keep_before(self._folder / name, rounds_done)
        # The final evaluation is made at every start, of a finished run too.
        _keep_before(self._folder / "evaluation.jsonl", min(rounds_done, self._config.rounds - 1))
        self._scalars = Scalars(self._folder / "tensorboard", rounds_done) if self._config.report.tensorboard else None
        if rounds_done:
            self._console.print(f"resuming after round {rounds_done} of {self._config.rounds}")
        if sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                self._config.name, total=self._config.rounds, completed=rounds_done, note=""
            )
        self._started = time.perf_counter()
        self._first = rounds_done

    def say(self, line: str) -> None:
        """Beside the progress bar, or in the log."""
        self._console.print(line, highlight=False)

    def round(self, index: int, metrics: Mapping[str, float], page: Mapping[str, Any]) -> None:
        _append(self._folder / "metrics.jsonl", {"round": index, **metrics})
        _append(self._folder / "ledger.jsonl", page)
        if self._scalars is not None:
            self._scalars.write("train", index, metrics)
            self._scalars.write("exchange", index, {"bytes": page["bytes"], "seconds": page["seconds"]})
        note = f"loss {metrics['loss']:.4f}" if "loss" in metrics else ""
        if "epsilon" in metrics:
            note = f"{note}  epsilon {metrics['epsilon']:.3f}".strip()
        if self._progress is not None:
            self._progress.update(self._task, completed=index + 1, note=note)
            return
        now = time.perf_counter()  # a log file gets a line every ten seconds, not one a round
        if now - self._last_line > 10 or index + 1 == self._config.rounds:
            left = (now - self._started) / (index + 1 - self._first) * (self._config.rounds - index - 1)
            self._console.print(f"round {index + 1}/{self._config.rounds}  {note}  {left:.0f} s left", highlight=False)
            self._last_line = now

    def evaluation(self, rounds_done: int, split: Split, per_client: Sequence[Mapping[str, float]]) -> None:
        for name, row in zip(self._clients, per_client, strict=True):
            _append(
                self._folder / "evaluation.jsonl", {"round": rounds_done - 1, "split": split, "client": name, **row}
            )
        if self._scalars is not None:
            for metric in self._shown:
                values = [row[metric] for row in per_client if not math.isnan(row[metric])]
                if values:
                    self._scalars.write(
                        split,
                        rounds_done - 1,
                        {f"{metric} mean": sum(values) / len(values), f"{metric} worst": min(values)},
                    )

    def finish(self, results: Mapping[str, Any], page: Mapping[str, Any]) -> None:
        """results.json and the table of the final evaluation, on standard output. page: the ledger's last one, of what
        was exchanged after the last round."""
        _append(self._folder / "ledger.jsonl", page)
        (self._folder / "results.json").write_text(json.dumps(_finite(results), indent=1))
        self.close()
        console = Console()
        if not console.is_terminal:  # a log file has no width: numbers are not to be cut
            console = Console(width=LOG_WIDTH)
        console.print(final_table(results, self._shown))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._scalars is not None:
            self._scalars.close()
            self._scalars = None


def final_table(results: Mapping[str, Any], shown: Mapping[str, str]) -> Table:
    """Per client, then mean and worst over clients."""
    table = Table(
        title=f"{results['name']}: {results['algorithm']}, {results['split']} split after {results['rounds']} rounds"
    )
    table.add_column("client")
    table.add_column("train rows", justify="right")
    table.add_column(f"{results['split']} rows", justify="right")
    for heading in shown.values():
        table.add_column(heading, justify="right")
    for client in results["clients"]:
        scores = [_number(client["metrics"][m]) for m in shown]
        table.add_row(client["name"], str(client["train_rows"]), f"{client['metrics']['examples']:.0f}", *scores)
    table.add_section()
    for kind in ("mean", "worst"):
        table.add_row(kind, "", "", *(_number(results["summary"][m][kind]) for m in shown))
    if over := results.get("combinations", {}).get("summary"):
        for kind in ("mean", "worst"):
            scores = [_number(over[m][kind]) for m in shown]
            table.add_row(f"{kind} over combinations", "", "", *scores)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _finite(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(_finite(line)) + "\n")


def _keep_before(path: Path, rounds_done: int) -> None:
    if path.exists():
        lines = path.read_text().splitlines()
        kept = []
        for line in lines:
            try:
                if json.loads(line)["round"] < rounds_done:
                    kept.append(line + "\n")
            except json.JSONDecodeError:  # the line that a killed process was writing
                continue
        path.write_text("".join(kept))

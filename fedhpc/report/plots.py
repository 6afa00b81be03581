"""PNG curves of a run folder, from the files that the run wrote."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw(folder: Path, shown: Sequence[str]) -> list[Path]:
    """plots/loss.png, epsilon.png where privacy was spent, and one picture for each of `shown` that was evaluated: a
    line per client.

    Returns:
        The files written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    target = folder / "plots"
    target.mkdir(exist_ok=True)
    written = []
    rounds = _lines(folder / "metrics.jsonl")
    for name, label in {"loss": "mean training loss", "epsilon": "epsilon so far"}.items():
        values = [(line["round"] + 1, line[name]) for line in rounds if line.get(name) is not None]
        if values:
            figure, axes = plt.subplots(figsize=(6, 4))
            axes.plot(*zip(*values, strict=True))
            axes.set(xlabel="round", ylabel=label)
            written.append(_save(figure, target / f"{name}.png"))
    curves: dict[str, dict[tuple[str, str], list[tuple[int, float]]]] = {
        metric: defaultdict(list) for metric in shown if not metric.startswith("chance")
    }
    for line in _lines(folder / "evaluation.jsonl"):
        for metric in curves:
            if line.get(metric) is not None:
                curves[metric][line["client"], line["split"]].append((line["round"] + 1, line[metric]))
    for metric, lines in curves.items():
        if not lines:
            continue
        figure, axes = plt.subplots(figsize=(6, 4))
        for colour, name in enumerate(sorted({client for client, _ in lines})):
            for split, style, marker in (("val", "-", ""), ("test", "", "o")):
                points = sorted(lines.get((name, split), []))
                if points:
                    label = name if style else f"{name}, {split}"
                    x, y = zip(*points, strict=True)
                    axes.plot(x, y, linestyle=style, marker=marker, color=f"C{colour % 10}", label=label)
        axes.set(xlabel="round", ylabel=metric)
        axes.legend(fontsize="small")
        written.append(_save(figure, target / f"{metric}.png"))
    plt.close("all")
    return written


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return path


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

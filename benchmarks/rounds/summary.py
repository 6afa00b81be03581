"""From the results of all runs to the table. Pure functions of the JSON that run.py writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from contenders import CONTENDERS, Cell

Run = Mapping[str, Any]  # a contender's result line with what run.py adds (repetition, pss_mib, wall_seconds, ...)
# (numerator, denominator): below 1, the first is faster.
RATIOS = (
    *(("fedhpc", other) for other in ("bare", "bare_heap", "pfl", "pfl_tuned")),
    ("pfl", "bare"),
    ("pfl", "bare_heap"),
    ("pfl_tuned", "bare_heap"),
)


def steady(run: Run) -> float:
    """Median seconds of the rounds after the first."""
    seconds: list[float] = run["seconds_per_round"][1:]
    return median(seconds)


def select(runs: Sequence[Run], contender: str, cell: Cell) -> list[Run]:
    """A contender's runs for a cell, ordered by repetition; in the precision that it runs in for that cell."""
    precision = CONTENDERS[contender].precision(cell)
    found = [
        run
        for run in runs
        if run["contender"] == contender and run["model"] == cell.model and run["precision"] == precision
    ]
    return sorted(found, key=lambda run: run["repetition"])


def paired_ratios(above: Sequence[Run], below: Sequence[Run]) -> list[float]:
    """steady(above) / steady(below), repetition by repetition: what slows the machine for a while slows both."""
    pairs = {run["repetition"]: run for run in below}
    return [steady(run) / steady(pairs[run["repetition"]]) for run in above if run["repetition"] in pairs]


def times_row(runs: Sequence[Run]) -> list[str]:
    """Cells of one table row: steady (min-max over repetitions), (min-max over rounds), first round, memory."""
    per_repetition = [steady(run) for run in runs]
    rounds = [seconds for run in runs for seconds in run["seconds_per_round"][1:]]
    first = [run["seconds_per_round"][0] for run in runs]
    processor = [run["cpu_seconds_per_round"] for run in runs if run["cpu_seconds_per_round"] is not None]
    memory = [run["pss_mib"] for run in runs if run["pss_mib"] is not None]
    return [
        f"**{median(per_repetition):.3f}** ({min(per_repetition):.3f}-{max(per_repetition):.3f})",
        f"{min(rounds):.3f}-{max(rounds):.3f}",
        f"{median(processor):.3f}" if processor else "not measured",
        f"{median(first):.2f} ({min(first):.2f}-{max(first):.2f})",
        f"{median(memory):.0f}" if memory else "not measured",
        str(max(run["processes"] for run in runs)) if memory else "-",
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def markdown(document: Mapping[str, Any]) -> str:
    """The report of what run.py wrote: settings, one table of times and one of ratios, versions, commands."""
    config, runs = document["config"], document["runs"]
    cells = [Cell(**cell) for cell in config["cells"]]
    times, ratios = [], []
    for cell in cells:
        for name in config["contenders"]:
            found = select(runs, name, cell)
            fallback = "" if CONTENDERS[name].precision(cell) == cell.precision else f" ({found[0]['precision']})"
            times.append([str(cell), name + fallback, *times_row(found)])
        for above, below in RATIOS:
            if above in config["contenders"] and below in config["contenders"]:
                values = paired_ratios(select(runs, above, cell), select(runs, below, cell))
                each = ", ".join(f"{value:.3f}" for value in values)
                ratios.append([str(cell), f"{above} / {below}", f"**{median(values):.3f}**", each])
    machine = document["machine"]
    lines = [
        f"# Rounds on {machine['hardware']}, {document['date']}",
        "",
        f"{config['ranks']} rank(s), {config['repetitions']} interleaved repetitions of {config['rounds']} rounds, "
        f"{config['num_clients']} clients, cohorts of 10, one torch thread a process. Commit {document['commit']}.",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}; "
        f"load average before the first run {machine['load_before']}, after the last {machine['load_after']}.",
        "",
        "Seconds per round are the median of the rounds after the first, then the median over repetitions.",
        "",
        *table(
            ["workload", "contender", "s/round (min-max of repetitions)", "min-max of rounds",
                "CPU s/round (all processes)", "first round",
             "PSS MiB", "processes"],
            times,
        ),
    ]  # fmt: skip
    if ratios:
        lines += ["", "Ratios are taken within a repetition; the median is bold.", ""]
        lines += table(["workload", "ratio", "median", "repetitions"], ratios)
    lines += ["", "| contender | what | versions |", "| --- | --- | --- |"]
    for name in config["contenders"]:
        any_run = next(run for run in runs if run["contender"] == name)
        versions = ", ".join(f"{package} {number}" for package, number in any_run["versions"].items())
        lines.append(f"| {name} | {CONTENDERS[name].about} | {versions} |")
    lines += ["", "```", f"{document['command']}", ""]
    lines += sorted({" ".join(run["command"]) for run in runs})
    lines += ["```", ""]
    return "\n".join(lines)

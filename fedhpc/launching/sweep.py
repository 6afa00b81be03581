"""A sweep: the cartesian product of values on the command line, one run folder each, named by what differs.

`fedhpc sweep CONFIG algorithm.mu=0.01,0.1 random_seed=0,1` makes the runs `mu=0.01,random_seed=0` and so on. Commas
inside [], {} and quotes belong to the value. SWEEP_DIR/sweep.json has the list.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.config.fields import shown
from fedhpc.config.load import ConfigError, load_config
from fedhpc.config.schema import RunConfig
from fedhpc.run_folder import is_free, refuse_other_config, rounds_done, write_config

MANIFEST = "sweep.json"
LONGEST = 40  # characters of a value in a folder's name
LONGEST_NAME = 200


@dataclass(frozen=True)
class Planned:
    """One run of a sweep. identity: the same for runs that would give the same result."""

    name: str
    overrides: tuple[str, ...]
    config: RunConfig
    identity: str


def split_commas(text: str) -> list[str]:
    """At commas outside of brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for position, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and depth <= 0:
            parts.append(text[start:position])
            start = position + 1
    return [part.strip() for part in [*parts, text[start:]]]


def axes_of(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """(overrides with one value, the values of each key that has several).

    Raises ConfigError for what is no sweep.
    """
    fixed: list[str] = []
    axes: dict[str, list[str]] = {}
    problems = []
    for text in overrides:
        key, equals, raw = text.partition("=")
        values = split_commas(raw)
        if key in axes or any(other.partition("=")[0] == key for other in fixed):
            problems.append(f"override {shown(text)}: {key} is given twice; give all its values at once: {key}=a,b")
        elif not equals or len(values) == 1:
            fixed.append(text)
        elif not all(values):
            problems.append(f"override {shown(text)}: a value is empty; remove a comma, or quote what is meant")
        elif duplicates := [value for value in values if values.count(value) > 1]:
            problems.append(f"override {shown(text)}: {duplicates[0]} is given twice; remove one")
        else:
            axes[key] = values
    if problems:
        raise ConfigError("sweep", problems)
    return fixed, axes


def plan(config: Path, overrides: Sequence[str]) -> list[Planned]:
    """All runs, validated as far as configs alone can tell.

    Raises ConfigError with the problems of all runs, and when two would give the same result.
    """
    fixed, axes = axes_of(overrides)
    names = _names(axes)
    runs, problems = [], []
    for combination in itertools.product(*([(key, value) for value in values] for key, values in axes.items())):
        changes = (*fixed, *(f"{key}={value}" for key, value in combination))
        name = ",".join(f"{names[key, None]}={names[key, value]}" for key, value in combination) or "run"
        try:
            resolved = load_config(config, changes)
        except ConfigError as error:
            problems += [f"{name}: {line}" if axes else line for line in error.problems]
            continue
        runs.append(Planned(name[:LONGEST_NAME], changes, resolved, identity(resolved)))
    problems = _once(problems, len(axes))
    first: dict[str, str] = {}
    for run in runs:
        if run.identity in first:
            problems.append(
                f"{run.name} would give the same result as {first[run.identity]}: what differs has no effect on it; "
                "remove one of the values"
            )
        first.setdefault(run.identity, run.name)
    if problems:
        raise ConfigError(str(config), problems)
    return runs


def identity(config: RunConfig) -> str:
    """SHA-256 over all that can change the result."""
    text = json.dumps(_without_free(config.model_dump(mode="json")), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def place(runs: Sequence[Planned], folder: Path) -> dict[str, Path]:
    """Run folder by name of the run. A run that the sweep has under another name keeps that folder.

    Raises ConfigError where a folder holds a run with another config.
    """
    known = {entry["identity"]: name for name, entry in read_manifest(folder).get("runs", {}).items()}
    places, problems = {}, []
    for run in runs:
        path = folder / known.get(run.identity, run.name)
        try:
            refuse_other_config(path, run.config)
        except ValueError as error:
            text = str(error).partition(". Use another")[0]
            problems.append(f"{text}. Use another --sweep-dir, or delete that folder")
        places[run.name] = path
    if problems:
        raise ConfigError(str(folder), problems)
    return places


def write_folders(runs: Sequence[Planned], places: Mapping[str, Path]) -> None:
    """The resolved config into each run folder, from where the run is started: a file that is edited while a sweep goes
    on does not change what is left of it."""
    for run in runs:
        places[run.name].mkdir(parents=True, exist_ok=True)
        write_config(places[run.name], run.config)


def write_manifest(
    folder: Path, config: Path, overrides: Sequence[str], runs: Sequence[Planned], places: Mapping[str, Path]
) -> None:
    """Adds the runs to those that the sweep had."""
    manifest = read_manifest(folder)
    entries = {places[run.name].name: {"overrides": list(run.overrides), "identity": run.identity} for run in runs}
    manifest["runs"] = manifest.get("runs", {}) | entries
    manifest["commands"] = [*manifest.get("commands", []), {"config": str(config), "overrides": list(overrides)}]
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{MANIFEST}.partial"
    temporary.write_text(json.dumps(manifest, indent=1))
    os.replace(temporary, folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    manifest: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return manifest


def is_finished(folder: Path, config: RunConfig) -> bool:
    """Whether the run came to its end, with as many rounds as are asked for now."""
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return int(results.get("rounds", 0)) == config.rounds and rounds_done(folder) >= config.rounds


# ------------------------------------------------------------------------------------------------------------ names
def _names(axes: Mapping[str, Sequence[str]]) -> dict[tuple[str, str | None], str]:
    """(key, None) -> how the key stands in folder names; (key, value) -> how the value does."""
    last = [key.rpartition(".")[2] for key in axes]
    names: dict[tuple[str, str | None], str] = {}
    for key, values in axes.items():
        short = key.rpartition(".")[2]
        names[key, None] = short if last.count(short) == 1 else key
        slugs = [_slug(value) for value in values]
        for value, slug in zip(values, slugs, strict=True):
            if slugs.count(slug) > 1 or len(slug) > LONGEST or not slug:
                slug = f"{slug[:LONGEST]}-{hashlib.sha256(value.encode()).hexdigest()[:6]}"
            names[key, value] = slug
    return names


def _slug(value: str) -> str:
    """A value as a part of a folder's name: letters, digits and . _ + - only."""
    return re.sub(r"[^A-Za-z0-9._+-]+", " ", value).strip().replace(" ", "-")


def _without_free(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without_free(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in data.items()
        if not is_free(prefix + key)
    }


def _once(problems: Sequence[str], num_axes: int) -> list[str]:
    """The same problem in many runs is told once, with the first run's name."""
    seen: dict[str, list[str]] = {}
    for problem in problems:
        name, colon, text = problem.partition(": ") if num_axes else ("", "", problem)
        seen.setdefault(text if colon else problem, []).append(name)
    return [
        text if not names[0] else f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {text}"
        for text, names in seen.items()
    ]

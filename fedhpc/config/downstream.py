"""What ``fedhpc evaluate`` can be asked: one section per kind of downstream task. Imports no torch.

One file is one task: `load_task` reads it with the rules of run configs (every problem at once, unknown and idle keys
are errors, ``dotted.key=value`` overrides).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import Field

from fedhpc.config.draft import told
from fedhpc.config.fields import closest, shown
from fedhpc.config.load import ConfigError, read_validated
from fedhpc.config.section import Section
from fedhpc.config.yaml_text import render

Split = Literal["train", "val", "test"]


class TaskData(Section):
    """Which packed file the task is about."""

    path: Path | None = None
    """HDF5 file written by ``fedhpc pack``; the run's own when not set. Its pictures must be of the run's size."""


class Task(Section):
    """What all kinds share."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the result: RUN/downstream/NAME.json."""
    random_seed: int = Field(0, ge=0, lt=2**63)
    """Of new layers, sub-samples, the order of batches and the bootstrap."""
    data: TaskData = Field(default_factory=TaskData)
    sites: list[str] | None = None
    """Use rows of these sites only. All sites of the file when not set."""
    client: int | str | None = None
    """Take this client's own model: its number, or its name in results.json. For runs whose clients differ."""
    batch_size: int = Field(64, ge=1)
    """Rows in a forward pass without training."""
    bootstrap: int = Field(1000, ge=0)
    """Resamples of the test patients behind each interval; 0: no intervals."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Share of the resamples that an interval spans."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


class TrainedTask(Task):
    """Kinds that learn on the train split, choose on val and report on test."""

    hold_out_site: str | None = None
    """Learn and choose on all other sites, report on this one: a site that the new layers have not seen."""


class RetrievalTask(Task):
    """Picture-to-text and text-to-picture retrieval among all rows of a split."""

    kind: Literal["retrieval"]
    split: Split = "test"
    match: list[str] | None = None
    """An item counts as correct when it agrees in all these label columns. Not set: identical text."""


class ZeroShotTask(Task):
    """Classes told by sentences: the class whose mean sentence is most similar to the picture."""

    kind: Literal["zero_shot"]
    split: Split = "test"
    label: str
    """Label column of the file."""
    prompts: dict[str, list[str]] | None = None
    """Sentences for each class of `label`. Set this or `template`."""
    template: str | None = None
    """One sentence for all classes, with {} for the class's name (underscores become spaces)."""


class LinearProbeTask(TrainedTask):
    """Logistic regression on the frozen image encoder's features."""

    kind: Literal["linear_probe"]
    label: str
    """Label column of the file."""
    features: Literal["encoder", "embedding"] = "encoder"
    """encoder: the image encoder's global feature. embedding: the joint space (dual encoders only)."""
    fractions: list[float] = Field(default_factory=lambda: [0.01, 0.1, 1.0])
    """Shares of the training rows; whole patients, stratified by class. A larger share contains a smaller one."""
    num_seeds: int = Field(5, ge=1)
    """Sub-samples of each share below 1."""
    strengths: list[float] = Field(default_factory=lambda: [1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0])
    """Inverse strengths C of the L2 penalty; the best on val is taken."""


class TuneConfig(Section):
    """Training by AdamW; the epoch that is best on val is kept."""

    max_epochs: int = Field(50, ge=1)
    patience: int = Field(10, ge=1)
    """Stop after this many epochs without a better one."""
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    """Of new layers."""
    encoder_learning_rate: float = Field(1e-4, gt=0)
    """Of the image encoder, where it is tuned."""
    weight_decay: float = Field(0.01, ge=0)


class FineTuneTask(TrainedTask):
    """The whole image encoder and a linear layer, tuned on a few rows of each class."""

    kind: Literal["fine_tune"]
    label: str
    """Label column of the file."""
    shots: int = Field(16, ge=1)
    """Training rows of each class, from as many patients as there are."""
    num_seeds: int = Field(3, ge=1)
    """Draws of the training rows, each with a new linear layer."""
    fit: TuneConfig = Field(default_factory=TuneConfig)


class SegmentationTask(TrainedTask):
    """A light convolutional decoder on the image encoder's token grid learns the file's masks."""

    kind: Literal["segmentation"]
    tune: bool = False
    """Tune the image encoder too; else it stays frozen."""
    decoder_width: int = Field(64, ge=8)
    """Channels of the decoder."""
    num_seeds: int = Field(1, ge=1)
    """Decoders, each from another start."""
    fit: TuneConfig = Field(default_factory=TuneConfig)


AnyTask = RetrievalTask | ZeroShotTask | LinearProbeTask | FineTuneTask | SegmentationTask
KINDS: dict[str, type[AnyTask]] = {
    tag: section for section in get_args(AnyTask) for tag in get_args(section.model_fields["kind"].annotation)
}


def load_task(path: Path, overrides: Sequence[str] = ()) -> AnyTask:
    """The validated task of a YAML file with `overrides` applied. Raises ConfigError with all problems at once."""

    def choose(data: dict[str, Any]) -> tuple[type[Section], list[str]]:
        kind = data.get("kind")
        if isinstance(kind, str) and kind in KINDS:
            return KINDS[kind], _of_other_kinds(data, kind)
        meant = closest(kind, KINDS) if kind is not None else None
        hint = f"; did you mean {meant}?" if meant else ""
        what = "missing" if kind is None else "unknown"
        line = f"kind = {shown(kind)}: {what}{hint}; set one of {', '.join(KINDS)}"
        if meant is None:
            raise ConfigError(str(path), [line])
        data["kind"] = meant  # go on as if it were this one, so that further problems are found
        return KINDS[meant], [line, *_of_other_kinds(data, meant)]

    return cast(AnyTask, read_validated(path, overrides, choose, check_task))


def dump_task(task: AnyTask) -> str:
    """Resolved YAML; `load_task` reads it back to an equal task."""
    data = task.model_dump(mode="json")
    for dotted in idle_task_keys(task):
        holder = data
        *parents, key = dotted.split(".")
        for part in parents:
            holder = holder[part]
        holder.pop(key)
    return render(data)


def _of_other_kinds(data: dict[str, Any], kind: str) -> list[str]:
    """Keys that this kind does not know but others do: named, and taken out of `data`."""
    lines = []
    for key in [key for key in data if key not in KINDS[kind].model_fields]:
        owners = [name for name, section in KINDS.items() if key in section.model_fields]
        if owners:
            value = data.pop(key)
            line = f"{key} = {shown(value)}: unknown key of kind: {kind}; {key} belongs to kind: {' or '.join(owners)}"
            if key == "hold_out_site":
                line += f". Nothing is learned here; set sites: [{value}] instead"
            lines.append(line)
    return lines


def idle_task_keys(task: AnyTask) -> dict[str, str]:
    """Dotted keys that have no effect in this task -> why, as the end of a sentence."""
    idle: dict[str, str] = {}
    if task.bootstrap == 0:
        idle["confidence"] = "with bootstrap: 0"
    if isinstance(task, LinearProbeTask) and all(fraction == 1 for fraction in task.fractions):
        idle["num_seeds"] = "with fractions: [1.0], as there is one way to take all rows"
    if isinstance(task, SegmentationTask) and not task.tune:
        idle["fit.encoder_learning_rate"] = "with tune: false"
    return idle


def check_task(task: Section, is_draft: bool = False) -> list[str]:
    """Problems between keys, one line each."""
    assert isinstance(task, get_args(AnyTask))
    return list(told(_problems(task), is_draft))


def _problems(task: AnyTask) -> Iterator[str]:
    for dotted, why in idle_task_keys(task).items():
        *parents, key = dotted.split(".")
        holder: Any = task
        for part in parents:
            holder = getattr(holder, part)
        if key in holder.model_fields_set:
            yield f"{dotted} = {shown(getattr(holder, key))}: has no effect {why}; remove it"
    for name in ("sites", "match"):
        if getattr(task, name, None) == []:
            yield f"{name} = []: nothing is left; name some, or remove the key"
    if isinstance(task, TrainedTask) and task.hold_out_site is not None and task.sites is not None:
        if task.hold_out_site not in task.sites:
            yield (
                f"hold_out_site = {shown(task.hold_out_site)} is not among sites = {shown(task.sites)}; "
                "add it there, or remove sites"
            )
        elif set(task.sites) == {task.hold_out_site}:
            yield f"sites = {shown(task.sites)} holds hold_out_site alone: nothing is left to learn on; name more sites"
    if isinstance(task, ZeroShotTask):
        yield from _prompts(task)
    if isinstance(task, LinearProbeTask):
        if not task.fractions or any(not 0 < fraction <= 1 for fraction in task.fractions):
            yield f"fractions = {shown(task.fractions)}: give at least one, each > 0 and <= 1"
        if len(set(task.fractions)) < len(task.fractions):
            yield f"fractions = {shown(task.fractions)}: one is given twice; remove it"
        if not task.strengths or any(strength <= 0 for strength in task.strengths):
            yield f"strengths = {shown(task.strengths)}: give at least one, each > 0"


def _prompts(task: ZeroShotTask) -> Iterator[str]:
    if (task.prompts is None) == (task.template is None):
        yield 'set exactly one of prompts ({class: [sentences]}) and template ("a picture of {}")'
    if task.template is not None and task.template.count("{}") != 1:
        yield f"template = {shown(task.template)}: must hold {{}} once, for the class's name"
    if task.prompts is not None:
        if len(task.prompts) < 2:
            yield f"prompts = {shown(task.prompts)}: give at least two classes"
        for name, sentences in task.prompts.items():
            if not sentences or any(not sentence.strip() for sentence in sentences):
                yield f"prompts.{name} = {shown(sentences)}: give at least one sentence, none of them empty"

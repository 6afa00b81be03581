"""Task files: every mistake at once, each with its cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhpc.config import ConfigError
from fedhpc.config.downstream import KINDS, AnyTask, dump_task, load_task

TASKS = {
    "retrieval": "kind: retrieval\nname: t\n",
    "zero_shot": 'kind: zero_shot\nname: t\nlabel: finding\ntemplate: "a {}"\n',
    "linear_probe": "kind: linear_probe\nname: t\nlabel: finding\n",
    "fine_tune": "kind: fine_tune\nname: t\nlabel: finding\n",
    "segmentation": "kind: segmentation\nname: t\n",
}


def load(folder: Path, text: str, *overrides: str) -> AnyTask:
    path = folder / "task.yaml"
    path.write_text(text, encoding="utf-8")
    return load_task(path, overrides)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return list(caught.value.problems)


@pytest.mark.parametrize("kind", TASKS)
def test_the_least_task_of_each_kind_round_trips(kind: str, tmp_path: Path) -> None:
    assert TASKS.keys() == KINDS.keys()
    task = load(tmp_path, TASKS[kind], "random_seed=7", "data.path=x.h5", "bootstrap=10")
    assert (task.kind, task.random_seed, str(task.data.path), task.bootstrap) == (kind, 7, "x.h5", 10)
    assert load(tmp_path, dump_task(task)) == task


def test_all_problems_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, "kind: fine_tun\nshotz: 4\nlabel: a\nfit: {patienc: 2, max_epochs: 0}\nsites: []\n")
    for part in (
        'kind = "fine_tun": unknown; did you mean fine_tune?',
        "shotz = 4: unknown key; did you mean shots?",
        "fit.patienc = 2: unknown key; did you mean patience?",
        "fit.max_epochs = 0",
        "name: missing",
    ):
        assert any(part in line for line in found), (part, found)


@pytest.mark.parametrize(
    ("kind", "override", "complaint"),
    [
        ("retrieval", "kind=null", "kind = null: missing; set one of retrieval"),
        ("retrieval", "shots=3", "shots belongs to kind: fine_tune"),
        ("retrieval", "hold_out_site=a", "Nothing is learned here; set sites: [a] instead"),
        ("retrieval", "match=[]", "match = []"),
        ("retrieval", "sites=[]", "sites = []"),
        ("retrieval", "name=a/b", "name"),
        ("retrieval", "random_seed=yes", "random_seed = true: a boolean"),
        ("zero_shot", "prompts={a: [x], b: [y]}", "set exactly one of prompts"),
        ("zero_shot", "template=null", "set exactly one of prompts"),
        ("zero_shot", "template=a picture", "must hold {} once"),
        ("linear_probe", "fractions=[0.1, 2]", "each > 0 and <= 1"),
        ("linear_probe", "fractions=[0.1, 0.1]", "given twice"),
        ("linear_probe", "fractions=[]", "give at least one"),
        ("linear_probe", "strengths=[0]", "each > 0"),
        ("linear_probe", "features=encodr", "did you mean encoder?"),
    ],
)
def test_a_problem_is_named_with_its_cure(kind: str, override: str, complaint: str, tmp_path: Path) -> None:
    found = problems(tmp_path, TASKS[kind], override)
    assert len(found) == 1 and complaint in found[0], found


@pytest.mark.parametrize(
    ("kind", "overrides", "complaint"),
    [
        ("retrieval", ("bootstrap=0", "confidence=0.9"), "confidence = 0.9: has no effect with bootstrap: 0"),
        ("linear_probe", ("fractions=[1.0]", "num_seeds=2"), "num_seeds = 2: has no effect with fractions: [1.0]"),
        ("segmentation", ("fit.encoder_learning_rate=1e-3",), "has no effect with tune: false"),
        ("segmentation", ("sites=[a, b]", "hold_out_site=c"), "is not among sites"),
        ("segmentation", ("sites=[a]", "hold_out_site=a"), "nothing is left to learn on"),
        ("zero_shot", ("template=null", "prompts={a: [x], b: []}"), "prompts.b = []"),
        ("zero_shot", ("template=null", "prompts={a: [x]}"), "at least two classes"),
    ],
)
def test_keys_that_fight_or_idle_are_named(
    kind: str, overrides: tuple[str, ...], complaint: str, tmp_path: Path
) -> None:
    found = problems(tmp_path, TASKS[kind], *overrides)
    assert len(found) == 1 and complaint in found[0], found

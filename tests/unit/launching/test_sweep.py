"""Axes, names and identities of a sweep's runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.config.load import ConfigError, load_config
from fedhpc.launching import sweep
from fedhpc.launching.sweep import axes_of, identity, place, plan, split_commas

SMOKE = Path(__file__).resolve().parents[3] / "configs" / "smoke"
PROX = SMOKE / "fedprox.yaml"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("0.01,0.1", ["0.01", "0.1"]),
        ("1", ["1"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("{name: fedprox, mu: 0.1},{name: fedavg}", ["{name: fedprox, mu: 0.1}", "{name: fedavg}"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ('{a: "}, {"},2', ['{a: "}, {"}', "2"]),
        ("a,,b", ["a", "", "b"]),
    ],
)
def test_commas_inside_a_value_belong_to_it(text: str, parts: list[str]) -> None:
    assert split_commas(text) == parts


@given(st.lists(st.sampled_from(["1", "a.b", "[1,2]", "{a: [1,2], b: 3}", "'x,y'"]), min_size=1))
def test_split_undoes_join(values: list[str]) -> None:
    assert split_commas(",".join(values)) == values


def test_one_value_is_fixed_and_several_are_an_axis() -> None:
    assert axes_of(["rounds=2", "algorithm.mu=0.1,1", "fit.optimizer.betas=[0.9,0.99]"]) == (
        ["rounds=2", "fit.optimizer.betas=[0.9,0.99]"],
        {"algorithm.mu": ["0.1", "1"]},
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["random_seed=0,1", "random_seed=2"], "random_seed is given twice"),
        (["random_seed=0,"], "a value is empty"),
        (["random_seed=0,1,0"], "0 is given twice"),
    ],
)
def test_what_is_no_axis(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        axes_of(overrides)


def test_the_product_is_named_by_what_differs() -> None:
    runs = plan(PROX, ["algorithm.mu=0.01,0.1", "random_seed=0,1,2", "rounds=2"])
    assert [run.name for run in runs] == [f"mu={mu},random_seed={seed}" for mu in ("0.01", "0.1") for seed in (0, 1, 2)]
    assert {run.config.rounds for run in runs} == {2}
    assert [run.config.random_seed for run in runs[:3]] == [0, 1, 2]
    assert plan(PROX, ["rounds=2"])[0].name == "run"


def test_names_stay_apart_and_within_a_folders_letters() -> None:
    names = [
        run.name
        for run in plan(
            PROX,
            [
                "algorithm={name: fedprox, mu: 0.1},{name: fedavg}",
                "fit.optimizer.betas=[0.9,0.95],[0.9,0.999]",
                "data.path=a/b.h5,a-b.h5",
            ],
        )
    ]
    assert len(set(names)) == 8
    assert names[0].startswith("algorithm=name-fedprox-mu-0.1,betas=0.9-0.95,path=a-b.h5-")
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.,=_+-") for name in names)


def test_a_minus_is_no_bracket() -> None:
    assert [run.name for run in plan(PROX, ["data.phantom.random_seed=-1,1"])] == ["random_seed=-1", "random_seed=1"]


def test_keys_of_one_last_word_are_written_out() -> None:
    (run, *_) = plan(PROX, ["evaluation.batch_size=8,16", "fit.batch_size=4,8"])
    assert run.name == "evaluation.batch_size=8,fit.batch_size=4"


def test_runs_of_one_result_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mu=1e-1 would give the same result as mu=0\.1"):
        plan(PROX, ["algorithm.mu=0.1,1e-1"])
    with pytest.raises(ConfigError, match="the same result"):
        plan(PROX, ["checkpoint.every=1,2"])


def test_all_runs_are_validated_and_a_common_mistake_is_told_once() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(PROX, ["algorithm.mu=-1,0.1", "random_seed=0,1", "roundz=2"])
    told = list(caught.value.problems)
    assert len(told) == 2
    assert any(line.startswith("mu=-1,random_seed=0 and 3 more: roundz = 2: unknown key") for line in told)
    assert any(line.startswith("mu=-1,random_seed=0 and 1 more: algorithm.mu = -1") for line in told)


def test_identity_is_that_of_the_result() -> None:
    base = identity(load_config(PROX))
    assert identity(load_config(PROX, ["name=other", "report.plots=false", "checkpoint.every=3"])) == base
    assert identity(load_config(PROX, ["random_seed=7"])) != base


def test_a_run_keeps_its_folder_when_the_sweep_grows(tmp_path: Path) -> None:
    few = plan(PROX, ["random_seed=3"])
    sweep.write_manifest(tmp_path, PROX, ["random_seed=3"], few, place(few, tmp_path))
    more = plan(PROX, ["random_seed=3,4"])
    places = place(more, tmp_path)
    assert [path.name for path in places.values()] == ["run", "random_seed=4"]
    sweep.write_manifest(tmp_path, PROX, ["random_seed=3,4"], more, places)
    manifest = json.loads((tmp_path / "sweep.json").read_text())
    assert set(manifest["runs"]) == {"run", "random_seed=4"}
    assert [command["overrides"] for command in manifest["commands"]] == [["random_seed=3"], ["random_seed=3,4"]]


def test_a_folder_with_another_run_is_not_gone_on_in(tmp_path: Path) -> None:
    runs = plan(PROX, ["random_seed=0,1"])
    places = place(runs, tmp_path)
    sweep.write_folders(runs, places)
    (places["random_seed=1"] / "checkpoints").mkdir()
    assert place(plan(PROX, ["random_seed=0,1", "report.plots=false"]), tmp_path) == places
    with pytest.raises(ConfigError, match=r"random_seed=1 holds .* fit.steps was 4, is 9.*another --sweep-dir"):
        place(plan(PROX, ["random_seed=0,1", "fit.steps=9"]), tmp_path)


def test_finished_means_all_rounds(tmp_path: Path) -> None:
    config = load_config(PROX)
    assert not sweep.is_finished(tmp_path, config)
    (tmp_path / "results.json").write_text(json.dumps({"rounds": config.rounds}))
    assert not sweep.is_finished(tmp_path, config), "without its last checkpoint"
    done = tmp_path / "checkpoints" / f"round_{config.rounds:06d}"
    done.mkdir(parents=True)
    (done / "loop.json").write_text("{}")
    assert sweep.is_finished(tmp_path, config)
    assert not sweep.is_finished(tmp_path, load_config(PROX, ["rounds=9"]))

"""Each mistake gets a line with the path, what was given and what to do; all mistakes at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhpc.config import ConfigError, load_config
from fedhpc.config.draft import draft
from fedhpc.config.fields import describe, keys_everywhere, variants
from fedhpc.config.schema import OptimizerConfig, RunConfig

from .conftest import BASE, CLASSIFIER, Problems


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("algorithm.mux=1", "algorithm.mux = 1: unknown key; did you mean mu?"),
        (
            "learning_rate=1",
            "learning_rate = 1: unknown key; learning_rate belongs to completion (method: generator) or fit.optimizer",
        ),
        ("fit.weight=1", "fit.weight = 1: unknown key; weight belongs to algorithm (name: fedavg) or "),
        ("algorithm.tau=1", "algorithm.tau = 1: unknown key; tau belongs to algorithm (name: fedopt)"),
        ("mesh.zzz=1", "mesh.zzz = 1: unknown key; mesh knows shard"),
        ("extend=b", 'extend = "b": unknown key; did you mean extends?'),
        ("model.image.pretraned=x", 'model.image.pretraned = "x": unknown key; did you mean pretrained?'),
        (
            "algorithm={name: fedporx}",
            'algorithm.name = "fedporx": unknown; did you mean fedprox?; set one of fedavg, ',
        ),
        ("algorithm={mu: 1}", "algorithm.name: missing; set it to one of fedavg, fedprox, fedopt, "),
        ("algorithm=local", 'algorithm = "local": not a section; write algorithm: {name: local}'),
        ("cohort=3", "cohort = 3: not a section; write a section with keys size, fraction"),
        (
            "cohort=",
            "cohort = null: an empty section; remove it (as an override: ~cohort), or write a section with keys",
        ),
        (
            "fit.batch_size=yes",
            "fit.batch_size = true: a boolean (YAML reads yes, no, on and off as booleans); write an",
        ),
        ("name=no", "name = false: a boolean (YAML reads yes, no, on and off as booleans); write text of the form"),
        ("data.label=off", "data.label = false: a boolean (YAML reads yes, no, on and off as booleans); write text or"),
        ("data.label=3", "data.label = 3: not accepted; set text or null, in quotes"),
        ("rounds=ten", 'rounds = "ten": not accepted; set an integer >= 1'),
        ("rounds=2.5", "rounds = 2.5: not accepted; set an integer >= 1"),
        ("fit.batch_size=0", "fit.batch_size = 0: not accepted; set an integer >= 1"),
        ("fit.clip_norm=-1", "fit.clip_norm = -1: not accepted; set a number or null > 0"),
        ("fit.optimizer.learning_rate=.inf", "fit.optimizer.learning_rate = Infinity: not accepted; set a number > 0"),
        ("fit.optimizer.betas=[1]", "fit.optimizer.betas = [1]: not accepted; set a list of 2 values, each a number"),
        ("aggregation.local_blocks=a", 'aggregation.local_blocks = "a": not accepted; set a list, each item text'),
        ("report.plots=perhaps", 'report.plots = "perhaps": not accepted; set true or false'),
        (
            "fit.optimizer.name=adamW",
            'fit.optimizer.name = "adamW": not allowed; did you mean adamw?; set one of sgd, ',
        ),
        ("mesh.shard=0", "mesh.shard = 0: not accepted; set an integer >= 1"),
        ("partition={kind: quantity, num_clients: 2}", "partition.alpha: missing; set it to a number > 0"),
        ("fit.epochs=1", "fit: set exactly one of fit.steps and fit.epochs"),
        ("fit.optimizer.momentum=0.9", "fit.optimizer.momentum = 0.9: has no effect with name: adamw; remove it"),
    ],
)
def test_line_for_one_mistake(problems: Problems, override: str, line: str) -> None:
    found = problems(override)
    assert len(found) == 1, found
    assert found[0].startswith(line)


def test_all_problems_at_once_even_behind_others(problems: Problems) -> None:
    found = problems(
        "rounds=0",  # a wrong value where nothing can be assumed instead
        "fit.optimizer.momentum=0.5",  # a key without effect ...
        "fit.optimizer.learning_rte=1",  # ... behind an unknown key
        "algorithm.name=fedox",
        "no_override",
    )
    assert [line.split(":")[0].split(" =")[0] for line in found] == [
        'override "no_override"',
        "rounds",
        "fit.optimizer.learning_rte",
        "algorithm.name",
        "fit.optimizer.momentum",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        ("rounds=ten", "rounds = "),
        ("fit.optimizer.learning_rate=fast", "fit.optimizer.learning_rate = "),
        ("fit.epochs=1", "fit: set exactly one"),  # a section's own rule
        ("algorithm={name: fedporx}", "algorithm.name = "),
        ("~model.text", "model.text: missing"),
    ],
    ids=lambda pair: pair[0],
)
def test_checks_between_keys_go_on_behind_a_key_that_nothing_stands_in_for(
    problems: Problems, wrong: tuple[str, str]
) -> None:
    found = problems(wrong[0], "cohort.size=9", "evaluation.split=test", "data.image_std=[0]")
    starts = [wrong[1], "cohort.size = 9 but", 'evaluation.split = "test": has no effect', "data.image_std = [0.0]: "]
    assert len(found) == 4, found
    for start in starts:
        assert any(line.startswith(start) for line in found), (start, found)


def test_a_draft_has_what_is_right_by_itself() -> None:
    data = {"name": "x", "rounds": 0, "fit": {"steps": 3, "epochs": 2, "batch_size": True, "optimizer": {}}, "model": 3}
    found = draft(RunConfig, data)
    assert isinstance(found, RunConfig)
    assert (found.name, found.fit.steps, found.fit.epochs, found.fit.batch_size) == ("x", 3, 2, 32)
    assert found.fit.model_fields_set == {"steps", "epochs", "optimizer"}
    for holder, key in ((found, "rounds"), (found, "model"), (found, "data"), (found.fit.optimizer, "learning_rate")):
        assert not hasattr(holder, key)
    assert (found.random_seed, found.fit.optimizer.name) == (0, "adamw")


def test_cross_field_checks_are_reported_with_the_schema_errors(problems: Problems) -> None:
    found = problems("cohort.size=9", "fit.foo=1", "report.plots=perhaps")
    assert len(found) == 3
    assert any(line.startswith("cohort.size = 9 but partition.num_clients = 4") for line in found)


def test_a_misspelt_key_is_taken_as_meant_by_the_checks(problems: Problems) -> None:
    found = problems(CLASSIFIER, "data.lable=finding")
    assert found == ['data.lable = "finding": unknown key; did you mean label?']


def test_checks_do_not_complain_about_values_that_were_already_refused(problems: Problems) -> None:
    found = problems(CLASSIFIER, "data.label=3")
    assert len(found) == 1, found


def test_message_counts_and_names_the_file(base: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(base, ["rounds=0", "fit.steps=0"])
    assert str(caught.value).startswith(f"{base}: 2 problems\n  rounds = 0: ")
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "the file is empty; "),
        ("[1]", "the file holds [1]; "),
        ("a: [1\nb: 2", "line 2, column 2: not YAML: while parsing a flow sequence, "),
        ("a: 1\n\tb: 2", "line 2, column 1: not YAML: "),
        ("a: \x00", "not YAML: "),
        ("no: 1", "line 1: key no is not text; YAML reads yes, no, on and off as booleans: quote it"),
        ("3: 1", "line 1: key 3 is not text; keys are text: quote it"),
        (BASE + "rounds: 3", "line 13: key rounds is given twice, first on line 2; keep one of them"),
    ],
)
def test_text_that_is_no_config(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.problems[0].startswith(line), caught.value.problems


def test_missing_file_suggests_the_neighbour(base: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; did you mean .*base\.yaml\?"):
        load_config(base.with_name("bsae.yaml"))


def test_folder_or_binary_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "x.yaml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(path)


# -------------------------------------------------------------------------------------------- the schema of itself
def test_every_field_can_be_described_and_found() -> None:
    keys = dict(keys_everywhere(RunConfig))
    assert keys["learning_rate"] == "fit.optimizer"
    assert ("num_sites", "data.phantom") in set(keys_everywhere(RunConfig))
    assert keys["server_optimizer"] == "algorithm (name: fedopt)"
    assert describe(OptimizerConfig.model_fields["momentum"]) == "a number >= 0 and < 1"
    assert set(variants(RunConfig.model_fields["model"])) == {"dual_encoder", "classifier", "fusion", "joint"}

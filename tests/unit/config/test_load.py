"""load_config: merging, overrides, and the way back through dump_config."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.config import ConfigError, config_digest, dump_config, load_config
from fedhpc.config.yaml_text import YamlError, parse, render

from .conftest import CLASSIFIER, Load, Problems


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_config_package_needs_no_heavy_library() -> None:
    code = (
        "import sys, fedhpc.config.load, fedhpc.config.checks\n"
        "heavy = {'torch', 'numpy', 'h5py', 'timm', 'transformers', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ------------------------------------------------------------------------------------------------------ overrides
def test_override_values_are_yaml(load: Load) -> None:
    config = load("algorithm.mu=1e-3", "aggregation.local_blocks=['head/*', '*norm*']", "fit.clip_norm=null", "name=1x")
    assert config.algorithm.mu == 0.001
    assert config.aggregation.local_blocks == ["head/*", "*norm*"]
    assert config.fit.clip_norm is None
    assert config.name == "1x"
    assert config.fit.optimizer.learning_rate == 1e-3  # 1e-3 in the file


def test_exponents_are_numbers_in_free_options_too(load: Load) -> None:
    config = load("model.text.options.layer_norm_eps=1e-12")
    assert config.model.text.options == {"hidden_size": 32, "layer_norm_eps": 1e-12}


def test_dotted_override_merges_and_braces_replace(load: Load) -> None:
    assert load("model.image.options.depth=2").model.image.options == {"embed_dim": 48, "depth": 2}
    assert load("model.image.options={depth: 2}").model.image.options == {"depth": 2}


def test_later_override_wins(load: Load) -> None:
    assert load("rounds=5", "rounds=6").rounds == 6


def test_override_makes_missing_sections(load: Load) -> None:
    assert load("cohort.size=2").cohort.size == 2
    assert load("data.phantom.num_sites=3").data.phantom.num_sites == 3


def test_a_key_is_taken_out_so_that_its_default_holds(load: Load, problems: Problems) -> None:
    config = load("fit.batch_size=8", "~fit.batch_size", "~algorithm", "cohort.size=2", "~cohort")
    assert (config.fit.batch_size, config.algorithm.name, config.cohort.size) == (32, "fedavg", None)
    assert load("~fit.steps", "fit.epochs=2").fit.epochs == 2
    assert load("~algorithm.mu", "algorithm.name=fedopt").algorithm.name == "fedopt"  # no key is left of fedprox
    assert load("~fit.steps", "fit.steps=7").fit.steps == 7  # in the order given
    [line] = problems("~rounds")
    assert line == "rounds: missing; set it to an integer >= 1"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("~fit.epochs", "fit.epochs is not set, so its default holds already; leave the override out"),
        ("~fit.step", "fit.step is not set, so its default holds already; did you mean ~fit.steps? Otherwise leave"),
        ("~evaluation.every", "evaluation.every is not set, so its default holds already; leave the override out"),
        ("~rounds.x", "rounds.x is not set"),
        ("~fit.steps=2", "not of the form ~section.key; ~ takes a key out and gives it no value"),
        ("~", "not of the form ~section.key"),
    ],
)
def test_a_key_that_cannot_be_taken_out_is_named(problems: Problems, override: str, line: str) -> None:
    [found] = problems(override)
    assert found.startswith(f'override "{override}": {line}')


def test_null_where_it_is_no_value_says_how_to_go_back(problems: Problems) -> None:
    for key in ("fit.batch_size", "fit.precision", "report.plots"):
        [line] = problems(f"{key}=null")
        assert line.endswith(f"or remove it for its default (as an override: ~{key})")
    [line] = problems("rounds=null")
    assert "default" not in line  # it has none


@pytest.mark.parametrize(
    "override", ["rounds", "=3", "a..b=3", "rounds.x=1", "aggregation.local_blocks=[", "extends=b"]
)
def test_bad_override_is_named(problems: Problems, override: str) -> None:
    found = problems(override)
    assert len(found) == 1
    assert found[0].startswith(f'override "{override}": ')


def test_override_into_a_list_says_to_replace_it(problems: Problems) -> None:
    [line] = problems("aggregation.local_blocks=[norm]", "aggregation.local_blocks.0=b")
    assert "aggregation.local_blocks is a list; replace it as a whole: aggregation.local_blocks=..." in line


def test_changing_the_variant_refuses_keys_of_the_old_one(problems: Problems, load: Load) -> None:
    [line] = problems("algorithm.name=fedopt", "algorithm.beta1=0.5")
    assert line.startswith("algorithm.mu = 0.5: unknown key of name: fedopt, left from the file's name: fedprox")
    assert "algorithm='{name: fedopt, beta1: 0.5}'" in line
    assert load("algorithm={name: fedopt, beta1: 0.5}").algorithm.beta1 == 0.5


def test_changing_the_variant_keeps_keys_that_both_know(load: Load) -> None:
    config = load("partition.kind=quantity", "partition.alpha=1")
    kept = {"kind": "quantity", "num_clients": 4, "alpha": 1.0, "min_examples": 1, "min_test_examples": 0}
    assert config.partition.model_dump() == kept


# -------------------------------------------------------------------------------------------------------- extends
def test_extends_merges_sections_and_replaces_lists(base: Path, tmp_path: Path) -> None:
    write(tmp_path, "middle.yaml", "extends: base.yaml\nrounds: 7\naggregation: {local_blocks: [norm, head/image]}\n")
    (tmp_path / "sub").mkdir()
    top = write(
        tmp_path,
        "sub/top.yaml",
        "extends: ../middle.yaml\naggregation: {local_blocks: [batch_norm]}\nfit: {steps: 9}\n",
    )
    config = load_config(top, ["random_seed=3"])
    assert (config.rounds, config.fit.steps, config.random_seed) == (7, 9, 3)
    assert config.fit.optimizer.learning_rate == 1e-3
    assert config.aggregation.local_blocks == ["batch_norm"]


def test_extending_file_replaces_a_section_of_another_variant(base: Path, tmp_path: Path) -> None:
    other = write(tmp_path, "other.yaml", "extends: base.yaml\nalgorithm: {name: fedopt, tau: 0.1}\n")
    same = write(tmp_path, "same.yaml", "extends: base.yaml\nalgorithm: {name: fedprox, weight: uniform}\n")
    assert load_config(other).algorithm.tau == 0.1
    assert (load_config(same).algorithm.mu, load_config(same).algorithm.weight) == (0.5, "uniform")


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    a = write(tmp_path, "a.yaml", "extends: b.yaml\n")
    write(tmp_path, "b.yaml", "extends: a.yaml\n")
    with pytest.raises(ConfigError, match=r"circle \(a\.yaml -> b\.yaml -> a\.yaml\)"):
        load_config(a)


def test_extends_must_be_one_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"extends = \[\"a\"\]: not a path"):
        load_config(write(tmp_path, "a.yaml", "extends: [a]\n"))


# ----------------------------------------------------------------------------------------------------- dump, digest
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("fit.optimizer={name: sgd, learning_rate: 1e-5, momentum: 0.9}",),
        ("algorithm={name: local}", "evaluation={every: 2, split: test}", "evaluation.match=[finding]"),
        ("algorithm={name: fedopt, server_optimizer: momentum}", "cohort.fraction=0.5"),
        (CLASSIFIER, "data.label=finding", "aggregation={arithmetic: float32}", "data.path=x/y.h5"),
        ("model.align=false", "model.text.options={a: '1e-3', b: [1, {c: null}], d: 'yes', e: '2026-01-02', f: 1e-30}"),
    ],
)
def test_dump_loads_to_the_same_config(load: Load, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    config = load(*overrides)
    again = load_config(write(tmp_path, "dumped.yaml", dump_config(config)))
    assert again == config
    assert config_digest(again) == config_digest(config)
    assert dump_config(again) == dump_config(config)


def test_dump_is_explicit_but_leaves_out_idle_keys(load: Load) -> None:
    data = yaml.safe_load(dump_config(load("fit.optimizer.name=sgd")))
    assert data["fit"]["drop_last"] is True
    assert data["cohort"] == {"size": None, "fraction": None, "dropout": None}
    assert data["fit"]["optimizer"]["momentum"] == 0.0
    assert "betas" not in data["fit"]["optimizer"]


def test_digest_ignores_spelling_and_sees_values(load: Load) -> None:
    digest = config_digest(load())
    assert len(digest) == 64
    assert config_digest(load("random_seed=0")) == digest  # the default, spelt out
    assert config_digest(load("random_seed=1")) != digest


# ------------------------------------------------------------------------------------------------------ YAML itself
# PyYAML folds the line separators of other systems (NEL, LS, PS) into a space.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], include_characters="\n\t"))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXT, PLAIN, max_size=4))
def test_render_and_parse_are_inverse(value: dict[str, object]) -> None:
    assert parse(render(value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_writes_is_a_number(value: float) -> None:
    read = parse(f"[{value!r}]")[0]
    assert isinstance(read, float)
    assert math.isclose(read, value, rel_tol=0, abs_tol=0)


@pytest.mark.parametrize("text", ["1e-3", "1E5", "-2.5e+7", ".5e3", "1.e2"])
def test_exponents_without_dot_or_sign_are_numbers(text: str) -> None:
    assert parse(text) == float(text)


@pytest.mark.parametrize("text", ["2026-01-02", "e5", "1e", "1e5x", "'1e5'"])
def test_other_text_stays_text(text: str) -> None:
    assert parse(text) == text.strip("'")


def test_duplicate_keys_are_refused_with_their_lines() -> None:
    with pytest.raises(YamlError) as caught:
        parse("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 4\n")
    assert sorted(caught.value.problems) == [
        "line 5: key c is given twice, first on line 3; keep one of them",
        "line 6: key a is given twice, first on line 1; keep one of them",
    ]


def test_a_key_may_override_what_an_anchor_merges_in() -> None:
    assert parse("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n")["b"] == {"p": 1, "q": 3}


def test_python_objects_are_not_built() -> None:
    with pytest.raises(YamlError, match="could not determine a constructor"):
        parse("!!python/object/apply:os.getcwd []")


BOMB = "b0: &b0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{k}: &b{k} [{', '.join([f'*b{k - 1}'] * 9)}]\n" for k in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BOMB, "more than 100000 values once aliases are written out"),
        ("a: &a [*a]\n", "line 1: an alias stands for something that it is part of"),
        ("[" * 60 + "]" * 60, "nested more than 50 levels deep"),
        ("[" * 3000, "nested more than 50 levels deep"),
        ("a: !!int ''\n", "cannot be read"),
        ("a: !!bool x\n", "cannot be read"),
        ("a: !!timestamp x\n", "cannot be read"),
    ],
)  # fmt: skip
def test_yaml_that_would_hang_or_crash_is_refused(tmp_path: Path, text: str, line: str) -> None:
    """Found by tests/fuzz."""
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(line)):
        load_config(path)


@pytest.mark.parametrize("base", ["/dev/zero", "\\0", "a" * 5000, "."])
def test_what_is_no_file_is_not_read(tmp_path: Path, base: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f'extends: "{base}"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read: "):
        load_config(path)


@pytest.mark.parametrize("value", [".inf", "[1, {a: .nan}]", "!!binary aGk="])
def test_options_that_json_does_not_know_are_refused(load: Load, value: str) -> None:
    with pytest.raises(ConfigError, match="model.image.options: .* is no value of an option"):
        load(f"model.image.options={{output_stride: {value}}}")

"""What `fedhpc check` knows of a packed file, and of names of encoders, without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedhpc.cli import app
from fedhpc.config.load import load_config
from fedhpc.data.hdf5 import PackWriter
from fedhpc.data.known import check_packed, file_of, not_checked
from fedhpc.models.names import check_names, timm_names, transformers_names
from tests.conftest import ROOT

Check = Callable[..., list[str]]
FEDDRA = "algorithm={name: feddra, stage1: {steps: 1}%s}"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 rows at north and south, 2 at tiny (one to train, one to test), labels side and shade."""
    path = tmp_path_factory.mktemp("known") / "known.h5"
    with PackWriter(path, name="known", source="a test", licence="CC0", generated=True) as writer:
        writer.add_images(np.zeros((26, 8, 8, 1), np.uint8))
        writer.set_text(["a b"] * 26)
        writer.set_tokens(np.ones((26, 4), np.int32), tokenizer_json="{}", pad_token=0, vocab_size=5)
        writer.set_label("side", np.arange(26) % 2, ["left", "right"])
        writer.set_label("shade", np.full(26, -1), ["dim"])
        writer.set_site(np.repeat([0, 1, 2], [12, 12, 2]), ["north", "south", "tiny"])
        writer.set_split(np.array([*[0] * 6, 1, 1, 1, 2, 2, 2, *[0] * 6, 1, 1, 1, 2, 2, 2, 0, 2]))
        writer.set_row_ids([str(row) for row in range(26)])
    return path


@pytest.fixture
def found(packed: Path) -> Check:
    """found(*overrides) -> what check_packed says of the smoke config on that file."""
    base = ["data={path: %s}" % packed, "cohort=%s", *[]]  # noqa: UP031

    def check(*overrides: str, config: str = "fedavg", cohort: str = "{}") -> list[str]:
        fixed = [base[0], base[1] % cohort] if config == "fedavg" else [base[0]]
        return check_packed(load_config(ROOT / "configs" / "smoke" / f"{config}.yaml", [*fixed, *overrides]))

    return check


def test_a_config_that_fits_its_file_has_no_problem(found: Check) -> None:
    assert found("evaluation.match=[side]", cohort="{size: 3}") == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["partition.leave_out=[nort]"],
            'partition.leave_out = ["nort"]: PATH has no such site; did you mean north? it',
        ),
        (["partition.leave_out=[north, south, tiny]"], "partition.leave_out = "),
        (
            ["evaluation.match=[sid]"],
            "evaluation.match = sid: PATH has no such column; did you mean side? it has shade",
        ),
        (["partition={kind: column, column: ward}"], "partition.column = ward: PATH has no such column; it has site, "),
        (["partition={kind: dirichlet, label: x, alpha: 1, num_clients: 2}"], "partition.label = x: PATH has no such"),
        (
            ["data.max_tokens=5"],
            "data.max_tokens = 5, but PATH has 4 tokens a row; remove it, or pack again with --max-",
        ),
        (["data.image_mean=[1, 2]"], "data.image_mean has 2 values, but the pictures of PATH have 1 channels; give"),
        (
            ["partition.min_examples=2"],
            "partition.min_examples = 2, but 1 of 3 clients have fewer training rows: tiny (1)",
        ),
        (
            ["cohort.size=3", "partition.leave_out=[tiny]"],
            "cohort.size = 3, but PATH makes 2 clients that train; set 2",
        ),
        (
            [FEDDRA % ", dro: {trim: 2}", "partition.leave_out=[tiny]"],
            "algorithm.dro.trim = 2 leaves nobody to lead: PATH makes 2 clients that train; set trim: 1 or less",
        ),
        (
            [FEDDRA % ", dro: {loss_split: val}"],
            "algorithm.name = feddra measures the loss of every client on its val rows, 2 at least, but tiny has 0; "
            'set partition.leave_out: ["tiny"], or pack fewer, larger sites',
        ),
        (
            [FEDDRA % "", "partition.leave_out=[tiny, north]"],
            "one client that trains with algorithm.dro: in a round of one client there is nothing to weigh",
        ),
        (["algorithm={name: afl}"], "algorithm.name = afl measures the loss of every client on its train rows, 2 at"),
    ],
)
def test_what_does_not_fit_is_named(found: Check, packed: Path, overrides: list[str], line: str) -> None:
    lines = found(*overrides)
    assert len(lines) == 1, lines
    assert lines[0].startswith(line.replace("PATH", str(packed)))


def test_a_classifier_needs_its_label(found: Check, packed: Path) -> None:
    model = "model={kind: classifier, image: {name: cnn_tiny}}"
    common = ("partition={kind: iid, num_clients: 2}", model)
    assert found(*common, "data.label=side") == []
    assert found(*common, "data.label=sidee")[0].startswith(f"data.label = sidee: {packed} has no such column; did you")
    assert "no row of" in found(*common, "data.label=shade")[0]


def test_a_file_that_cannot_be_read_is_named(found: Check, tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_text("no")
    [line] = found(f"data.path={tmp_path / 'x.h5'}")
    assert "is not an HDF5 file" in line


def test_a_set_that_is_not_generated_yet_is_known_by_its_names(tmp_path: Path) -> None:
    smoke = ROOT / "configs" / "smoke" / "fedavg.yaml"
    path = f"data.path={tmp_path / 'new.h5'}"
    config = load_config(smoke, [path, "evaluation.match=[findin]", "partition.leave_out=[site-f]"])
    assert [line.partition(":")[0] for line in check_packed(config)] == [
        "evaluation.match = findin", 'partition.leave_out = ["site-f"]'
    ]  # fmt: skip
    config = load_config(smoke, [path, "evaluation.match=[finding]", "partition.leave_out=[site-e]"])
    assert check_packed(config) == []
    assert not_checked(config)[0] == f"the rows of {tmp_path / 'new.h5'}, which is not there yet"


def test_what_is_left_to_the_run_is_said(packed: Path) -> None:
    smoke = ROOT / "configs" / "smoke" / "fedavg.yaml"
    source = "data={path: %s}" % packed  # noqa: UP031
    config = load_config(smoke, [source, "aggregation.local_blocks=['image_encoder.*norm*', norm, 'head/*']"])
    assert file_of(config) == packed
    assert not_checked(config) == [
        "model.image.options",
        "model.text.options",
        "whether aggregation.local_blocks image_encoder.*norm* match a tensor",
    ]
    config = load_config(smoke, [source, "partition={kind: iid, num_clients: 2}", "~cohort", "~model.image.options"])
    assert not_checked(config) == ["whether partition.kind = iid finds rows for every client", "model.text.options"]


def test_names_of_encoders(packed: Path) -> None:
    smoke = ROOT / "configs" / "smoke" / "fedavg.yaml"
    assert check_names(load_config(smoke)) == []
    wrong = load_config(smoke, ["model.image.name=resnet10tt", "model.text.name=brt"])
    assert check_names(wrong) == [
        "model.image.name = resnet10tt: timm has no network resnet10tt; did you mean resnet10t?",
        "model.text.name = brt: transformers has no model type brt; did you mean bert?",
    ]
    own = "model={kind: classifier, image: {name: resnet10}}"
    small = load_config(ROOT / "configs" / "smoke" / "classifier.yaml", [own])
    assert check_names(small) == []
    assert check_names(load_config(smoke, ["model.image.name=resnet10"])) == [
        "model.image.name = resnet10: timm has no network resnet10; did you mean resnet10t?"
    ]
    places = ["model.image.name=hf-hub:owner/model", f"model.text.name={packed.parent}"]
    assert check_names(load_config(smoke, places)) == []


def test_check_tells_of_keys_file_and_names_at_once(packed: Path) -> None:
    smoke = str(ROOT / "configs" / "smoke" / "fedavg.yaml")
    wrong = ["data={path: %s}" % packed, "fit.batch_size=1", "evaluation.match=[x]", "model.text.name=brt"]  # noqa: UP031
    result = CliRunner().invoke(app, ["check", smoke, *wrong, "evaluation.everyy=2", "~cohort"])
    assert result.exit_code == 2
    for part in ("4 problems", "everyy = 2: unknown", "fit.batch_size = 1: ", "match = x: ", "model.text.name = brt: "):
        assert part in result.output, result.output
    result = CliRunner().invoke(app, ["check", smoke, wrong[0], "~cohort"])
    assert result.exit_code == 0
    assert "left to the start of the run: model.image.options, model.text.options" in result.output


def test_names_are_those_of_the_libraries() -> None:
    from timm.models._registry import _model_entrypoints
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert timm_names() == set(_model_entrypoints)
    assert transformers_names() == set(CONFIG_MAPPING_NAMES)


def test_check_imports_neither_torch_nor_the_encoders_libraries() -> None:
    code = (
        "import sys, fedhpc.data.known, fedhpc.models.names\n"
        "fedhpc.models.names.timm_names()\n"
        "heavy = {'torch', 'timm', 'transformers', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

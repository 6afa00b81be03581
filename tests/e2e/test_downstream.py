"""`fedhpc evaluate` and `fedhpc export` on a finished run, as users start them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.e2e.command import SMOKE, fedhpc

TASKS = ROOT / "configs" / "downstream"
QUICK = ("data.path=phantom.h5", "rounds=1", "evaluation.every=1", "report={tensorboard: false, plots: false}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds phantom.h5 and a finished run in runs/dual."""
    made = tmp_path_factory.mktemp("downstream")
    code, _, err = fedhpc(made, "run", str(SMOKE / "fedavg.yaml"), *QUICK, "--run-dir", "runs/dual")
    assert code == 0, err
    return made


def evaluate(folder: Path, task: str, *overrides: str, run: str = "runs/dual") -> tuple[int, str, str]:
    return fedhpc(folder, "evaluate", run, "--task", str(TASKS / f"{task}.yaml"), *overrides)


def test_a_shipped_task_writes_a_file_and_prints_a_table(folder: Path) -> None:
    code, out, err = evaluate(folder, "retrieval", "bootstrap=50")
    assert code == 0, err
    found = json.loads((folder / "runs" / "dual" / "downstream" / "retrieval.json").read_text())
    assert [record["scope"] for record in found["results"]] == ["all", *(f"site-{c}" for c in "abcde")]
    assert found["data"]["generated"] is True and found["run"]["weights"] == "the shared model"
    assert found["task"]["bootstrap"] == 50
    for part in ("macro R@1", "site-e", "generated, not real data", "written to"):
        assert part in out, out


def test_an_unseen_site_is_asked_for_by_an_override(folder: Path) -> None:
    overrides = ("hold_out_site=site-b", "fractions=[0.5]", "bootstrap=20", "name=b", "num_seeds=1")
    code, out, err = evaluate(folder, "phantom_linear_probe", *overrides)
    assert code == 0, err
    assert "its encoder has seen the site" in out.replace("\n", " ")
    found = json.loads((folder / "runs" / "dual" / "downstream" / "b.json").read_text())
    assert {record["scope"] for record in found["results"]} == {"all", "site-b"}


def test_mistakes_are_named_without_a_traceback(folder: Path) -> None:
    for arguments, parts in (
        (("retrieval", "matchh=[a]", "bootstrap=-1"), ("2 problems", "did you mean match", "bootstrap = -1")),
        (("nothing",), ("no such file", "yaml")),
        (("retrieval", "client=0"), ("client: site-a has no effect",)),
    ):
        code, _, err = evaluate(folder, *arguments)
        assert code == 2 and "Traceback" not in err, err
        for part in parts:
            assert part in err.replace("\n", " "), err


def test_an_export_is_a_start_for_another_run(folder: Path) -> None:
    code, out, err = fedhpc(folder, "export", "runs/dual", "--to", "exported")
    assert code == 0, err
    assert "exported/README.md" in out
    assert {path.name for path in (folder / "exported").iterdir()} == {
        "image", "text", "heads.safetensors", "config.yaml", "README.md"
    }  # fmt: skip
    code, _, err = fedhpc(
        folder, "run", str(SMOKE / "fedavg.yaml"), *QUICK, "--run-dir", "runs/on",
        "model.image={name: vit_tiny_patch16_224, pretrained: exported/image}",
        "model.text={name: bert, pretrained: exported/text}",
    )  # fmt: skip
    assert code == 0, err

"""Arms by what differs, differences seed by seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from fedhpc.report.compare import comparison, differences, interval, paired, read_arms, unseen


def finished(folder: Path, algorithm: str, seed: int, worst: float, **changes: Any) -> Path:
    """A run folder as `fedhpc run` leaves it, with one metric."""
    folder.mkdir(parents=True)
    summary = {"recall_at_5": {"mean": worst + 0.1, "worst": worst, "best": 1.0}}
    results = {"name": f"n-{algorithm}", "algorithm": algorithm, "random_seed": seed, "split": "test"}
    (folder / "results.json").write_text(json.dumps({**results, "summary": summary}))
    section = {"name": algorithm, **({"mu": changes.pop("mu")} if "mu" in changes else {})}
    config = {"name": f"n-{algorithm}", "random_seed": seed, "rounds": 3, "algorithm": section, **changes}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def text(table: Any) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    worst = {"fedavg": (0.2, 0.4, 0.3), "feddra": (0.25, 0.5, 0.3)}
    return [finished(tmp_path / f"{a}{s}", a, s, v) for a, values in worst.items() for s, v in enumerate(values)]


def test_runs_that_differ_in_seeds_only_are_one_arm(runs: list[Path]) -> None:
    arms = read_arms(runs)
    assert [(a.algorithm, sorted(a.runs)) for a in arms] == [("fedavg", [0, 1, 2]), ("feddra", [0, 1, 2])]
    table = text(comparison(arms))
    assert "0.400±0.100 / 0.300±0.100" in table
    assert differences(arms) == []


def test_differences_are_taken_seed_by_seed(runs: list[Path]) -> None:
    table = paired(read_arms(runs))
    assert table is not None
    # +.05, +.10, 0: mean .05, standard error .05/sqrt(3), t(2) = 4.3027
    assert "+0.050 [-0.074, +0.174] +17% 2/3" in text(table)
    mean, low, high = interval([0.05, 0.1, 0.0])
    assert (mean, low, high) == pytest.approx((0.05, 0.05 - 4.302653 * 0.05 / 3**0.5, 0.05 + 4.302653 * 0.05 / 3**0.5))


def test_what_else_differs_is_told(runs: list[Path], tmp_path: Path) -> None:
    longer = finished(tmp_path / "longer", "scaffold", 0, 0.5, rounds=9)
    arms = read_arms([*runs, longer])
    also, seeds = differences(arms)
    assert also == "n-scaffold also differs from n-fedavg in rounds: 3 / 9"
    assert seeds.startswith("n-scaffold has random seeds [0], n-fedavg [0, 1, 2]")


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    arms = read_arms([finished(tmp_path / a, a, 0, 0.3) for a in ("fedavg", "feddra")])
    assert paired(arms) is None
    assert "0.400 / 0.300" in text(comparison(arms))


def test_arms_of_one_name_are_told_apart_by_folder(tmp_path: Path) -> None:
    short, longer = (finished(tmp_path / n, "fedavg", 0, 0.3, rounds=k) for n, k in (("short", 3), ("longer", 9)))
    assert [arm.name for arm in read_arms([short, longer])] == [str(short), str(longer)]


def test_runs_on_other_data_are_another_arm(tmp_path: Path) -> None:
    first, second = finished(tmp_path / "a", "fedavg", 0, 0.3), finished(tmp_path / "b", "fedavg", 1, 0.4)
    for folder, checksum in ((first, "x"), (second, "y")):
        results = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(
            json.dumps({**results, "data": {"checksum": checksum, "generated": False}})
        )
    arms = read_arms([first, second])
    assert len(arms) == 2
    assert "data: x / y" in differences(arms)[0]


def test_other_keys_of_one_algorithm_are_told(tmp_path: Path) -> None:
    runs = [finished(tmp_path / str(mu), "fedprox", 0, 0.3, mu=mu) for mu in (1, 2)]
    assert "algorithm.mu: 1 / 2" in differences(read_arms(runs))[0]


def test_unfinished_and_repeated_runs_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run it to its end first"):
        read_arms([tmp_path])
    with pytest.raises(ValueError, match="second run of n-fedavg with random_seed 0"):
        read_arms([runs[0], finished(tmp_path / "again", "fedavg", 0, 0.3)])
    with pytest.raises(ValueError, match="--metric accuracy"):
        comparison(read_arms(runs), ["accuracy"])


def test_metrics_go_by_their_shown_names_too(runs: list[Path]) -> None:
    arms = read_arms(runs)
    for name in ("R@5", "r@5", "recall_at_5"):
        assert text(comparison(arms, [name])) == text(comparison(arms, ["recall_at_5"]))
    assert text(comparison(arms, ["R@5", "recall_at_5"])).count("R@5") == 1
    with pytest.raises(
        ValueError, match=r"--metric recal_at_5: did you mean recall_at_5\? The runs have recall_at_5 \(R@5\)"
    ):
        comparison(arms, ["recal_at_5"])
    with pytest.raises(ValueError, match=r"--metric R@50: did you mean R@5\?"):
        comparison(arms, ["R@50"])


def test_sites_left_out_of_training_have_rows_of_their_own(tmp_path: Path) -> None:
    at_north = {"fedavg": (0.2, 0.4, 0.3), "feddra": (0.25, 0.5, 0.3)}
    folders = []
    for algorithm, values in at_north.items():
        for seed, value in enumerate(values):
            folder = finished(tmp_path / f"{algorithm}{seed}", algorithm, seed, 0.3)
            results = json.loads((folder / "results.json").read_text())
            results["clients"] = [
                {"name": "south", "metrics": {"recall_at_5": 0.9}},
                {"name": "north (unseen)", "metrics": {"recall_at_5": value}},
            ]
            (folder / "results.json").write_text(json.dumps(results))
            folders.append(folder)
    arms = read_arms(folders)
    table = unseen(arms)
    assert table is not None
    shown = text(table)
    assert "north (unseen)" in shown and "south" not in shown
    assert "0.300±0.100" in shown and "0.350±0.132" in shown
    assert "+0.050 [-0.074, +0.174] +17% 2/3" in shown
    assert "0.400 / 0.300" in text(comparison(arms)).replace("±0.000", "")


def test_without_such_sites_there_is_no_such_table(runs: list[Path]) -> None:
    assert unseen(read_arms(runs)) is None

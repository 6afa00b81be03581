"""Cluster files: what is read, what is refused, and that every shipped one is valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.config.cluster import LocalCluster, SlurmCluster, load_cluster, split_overrides, time_s
from fedhpc.config.load import ConfigError

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted((ROOT / "configs" / "cluster").glob("*.y*ml"))
SLURM = 'kind: slurm\ntime: "01:00:00"\n'


def slurm(folder: Path, text: str, *overrides: str) -> SlurmCluster:
    path = folder / "site.yaml"
    path.write_text(text)
    cluster = load_cluster(str(path), overrides)
    assert isinstance(cluster, SlurmCluster)
    return cluster


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_cluster_is_valid_and_begins_with_its_command(path: Path) -> None:
    load_cluster(str(path))
    first = path.read_text().splitlines()[0]
    assert re.match(r"^# fedhpc (submit|sweep) ", first)
    assert f"--cluster {path.relative_to(ROOT)}" in first
    for word in first.split():
        assert not word.endswith(".yaml") or (ROOT / word).is_file(), word


def test_there_is_a_template_a_local_and_the_two_nodes() -> None:
    assert {path.stem for path in SHIPPED} >= {"site", "local", "two_nodes"}


def test_the_template_names_every_key() -> None:
    text = (ROOT / "configs" / "cluster" / "site.yaml").read_text()
    assert [key for key in SlurmCluster.model_fields if not re.search(rf"^{key}:", text, re.MULTILINE)] == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),  # minutes
        ("30:05", 1805),
        ("01:30:05", 5405),
        ("2-0", 172800),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("1-12:30:15", 131415),
        ("100:00:00", 360000),
        ("0", None),
        ("day", None),
        ("1:2:3:4", None),
        ("-5", None),
        ("1-", None),
        ("1h", None),
    ],
)
def test_times_are_slurms(text: str, seconds: int | None) -> None:
    """Forms of sbatch(1), --time."""
    assert time_s(text) == seconds


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_long_form_of_time(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert time_s(f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}") == (total or None)


def test_an_unquoted_time_is_refused_in_a_file_and_understood_in_an_override(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="86400 is a number .* in quotes"):
        slurm(tmp_path, "kind: slurm\ntime: 24:00:00\n")
    assert slurm(tmp_path, SLURM, "time=24:00:00").time_s == 86400
    assert slurm(tmp_path, SLURM, "time='2-0'").time_s == 172800


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = SLURM + "nodes: 0\nparttition: gpu\ngpu_type: a100\nsbatch: {mem: 3G, --x: 1}\nshared_folders: [home]\n"
    with pytest.raises(ConfigError) as caught:
        slurm(tmp_path, text)
    told = str(caught.value)
    for part in ("nodes = 0", "parttition", "did you mean partition?"):
        assert part in told
    with pytest.raises(ConfigError) as caught:
        slurm(tmp_path, text.replace("nodes: 0\n", "").replace("parttition", "partition"))
    told = str(caught.value)
    for part in ("gpu_type = a100: has no effect", "set memory_gb_per_rank", "sbatch.--x", "home is not absolute"):
        assert part in told


def test_the_signal_comes_after_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stop_before_s = 4000 .* is 3600 s"):
        slurm(tmp_path, SLURM, "stop_before_s=4000")


def test_local_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_cluster("local") == LocalCluster(kind="local")
    assert load_cluster("local", ["max_runs_at_once=3", "ranks=2"]) == LocalCluster(
        kind="local", max_runs_at_once=3, ranks=2
    )
    with pytest.raises(ConfigError, match=r"cluster\.max_runs_at_once=N"):
        load_cluster("local", ["nodes=2"])
    with pytest.raises(ConfigError, match=r"did you mean local\?"):
        load_cluster("lokal")


def test_a_name_is_a_file_in_configs_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "cluster").mkdir(parents=True)
    (tmp_path / "configs" / "cluster" / "home.yaml").write_text(SLURM + "nodes: 3\n")
    cluster = load_cluster("home", ["ranks_per_node=2"])
    assert isinstance(cluster, SlurmCluster)
    assert cluster.ranks == 6
    with pytest.raises(ConfigError, match="there are home, local"):
        load_cluster("xyz")
    (tmp_path / "configs" / "cluster" / "home.yaml").write_text("kind: pbs\n")
    with pytest.raises(ConfigError, match=r'kind = "pbs": unknown.*set one of local, slurm'):
        load_cluster("home")


def test_overrides_are_told_apart_by_their_prefix() -> None:
    assert split_overrides(["rounds=3", "cluster.nodes=2", "name=cluster.x"]) == (
        ["rounds=3", "name=cluster.x"],
        ["nodes=2"],
    )
    with pytest.raises(ConfigError, match=r"nodes=4: a key of the cluster; write cluster\.nodes=4"):
        split_overrides(["rounds=3", "nodes=4"])
    assert split_overrides(["partition.num_clients=3"])[1] == [], "both have a partition"

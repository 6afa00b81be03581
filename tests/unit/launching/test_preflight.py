"""What is refused before queueing, against a made-up site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedhpc.config.cluster import SlurmCluster
from fedhpc.config.load import load_config
from fedhpc.launching import preflight
from fedhpc.launching.preflight import choose_partition, clock, file_system, node_findings, partition_problems
from fedhpc.launching.slurm import Node, Partition

SMOKE = Path(__file__).resolve().parents[3] / "configs" / "smoke" / "fedavg.yaml"
GPU = Partition(
    "gpu", max_time_s=86400, max_nodes=4, allow_accounts=frozenset({"lab"}), allow_qos=frozenset({"normal"})
)
THERE = [Partition("cpu", is_default=True), GPU]
NODES = [
    *(Node(f"a{i}", 64, 256000, {"a100": 4}, frozenset({"a100", "ib"})) for i in range(2)),
    *(Node(f"v{i}", 32, 128000, {"v100": 8}, frozenset({"v100"})) for i in range(3)),
]


def cluster(**keys: Any) -> SlurmCluster:
    return SlurmCluster(kind="slurm", **{"time": "01:00:00", **keys})


def test_the_partition_is_the_one_named_or_the_default() -> None:
    assert choose_partition(cluster(), THERE) == (THERE[0], None)
    assert choose_partition(cluster(partition="gpu"), THERE) == (GPU, None)
    chosen, problem = choose_partition(cluster(partition="gpus"), THERE)
    assert chosen is None and problem is not None
    assert "did you mean gpu?" in problem and "cpu, gpu" in problem
    _, problem = choose_partition(cluster(), [GPU])
    assert problem is not None and "no default" in problem
    assert choose_partition(cluster(partition="gpu,cpu"), THERE) == (None, None), "a list is left to Slurm"
    _, problem = choose_partition(cluster(partition="gpu,nope"), THERE)
    assert problem is not None and "nope" in problem


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"time": "2-0"}, 'set time: "1-00:00:00"'),
        ({"nodes": 5}, "set nodes: 4"),
        ({"account": "other"}, "it takes lab"),
        ({"qos": "long"}, "takes normal"),
    ],
)
def test_limits_of_the_partition(keys: dict[str, Any], told: str) -> None:
    (problem,) = partition_problems(cluster(**keys), GPU)
    assert told in problem


def test_a_partition_that_is_down_and_one_that_wants_more_nodes() -> None:
    found = list(partition_problems(cluster(), Partition("p", state="DOWN", min_nodes=2)))
    assert len(found) == 2
    assert "DOWN" in found[0] and "at least 2" in found[1]
    assert list(partition_problems(cluster(account="lab", qos="normal"), GPU)) == []


def test_accounts_that_the_site_tells() -> None:
    given = cluster(account="mine", qos="fast")
    assert list(preflight.account_problems(given, None, None, "me")) == [], "a site that does not tell refuses nothing"
    found = list(preflight.account_problems(given, frozenset({"lab"}), frozenset({"normal"}), "me"))
    assert ["me has lab" in found[0], "this site has normal" in found[1]] == [True, True]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"nodes": 6}, "nodes = 6 but partition gpu has 5; set nodes: 5 (with ranks_per_node: 2"),
        ({"constraint": "h100"}, "the features there are a100, ib, v100"),
        ({"constraint": "a100&ib", "nodes": 3}, "partition gpu with a100&ib has 2"),
        ({"cpus_per_rank": 128}, "set cpus_per_rank: 64"),
        ({"ranks_per_node": 20, "cpus_per_rank": 4}, "= 80 CPUs a node but the largest node of partition gpu has 64"),
        ({"memory_gb_per_rank": 300}, "of partition gpu has 256000 MB; set memory_gb_per_rank: 250"),
        ({"gpus_per_rank": 9}, "= 9 GPUs a node but the largest node of partition gpu has 8"),
        ({"gpus_per_rank": 1, "ranks_per_node": 8, "gpu_type": "a100"}, "gpu has 4; set ranks_per_node: 4"),
        ({"gpus_per_rank": 1, "gpu_type": "h100"}, "has 0 (a100, v100); set another partition"),
        ({"gpus_per_rank": 1, "ranks_per_node": 8, "nodes": 4}, "have what 8 ranks ask for; set nodes: 3"),
    ],
)  # fmt: skip
def test_nodes_that_are_too_small_or_too_few(keys: dict[str, Any], told: str) -> None:
    found = node_findings(cluster(**keys), GPU, NODES)
    assert len(found.problems) == 1, found.problems
    assert told in found.problems[0]


def test_limits_below_the_nodes_own() -> None:
    tight = Partition("tight", max_cpus_per_node=16, max_memory_mb_per_node=64000)
    found = node_findings(cluster(ranks_per_node=20, memory_gb_per_rank=4), tight, NODES)
    assert "partition tight allows 16 a node; set ranks_per_node: 16" in found.problems[0]
    assert "partition tight allows 64000 MB a node" in found.problems[1]


def test_nodes_that_are_down_make_a_note() -> None:
    nodes = [NODES[0], Node("a1", 64, 256000, {"a100": 4}, state="down*")]
    found = node_findings(cluster(nodes=2), GPU, nodes)
    assert found.problems == []
    assert "1 of the 2 fitting nodes of partition gpu are down" in found.notes[0]


def test_enough_is_enough() -> None:
    found = node_findings(
        cluster(nodes=2, ranks_per_node=4, gpus_per_rank=1, cpus_per_rank=16, gpu_type="a100"), GPU, NODES
    )
    assert (found.problems, found.notes) == ([], [])


@pytest.mark.parametrize(
    ("keys", "overrides", "told"),
    [
        ({}, ["runtime.threads_per_rank=4"], "set cluster.cpus_per_rank=4"),
        ({}, ["runtime.device=cuda"], "set cluster.gpus_per_rank=1"),
        ({"gpus_per_rank": 1}, ["runtime.device=cpu"], "leave them idle"),
    ],
)
def test_what_a_run_asks_of_its_ranks(keys: dict[str, Any], overrides: list[str], told: str) -> None:
    (problem,) = preflight.run_problems(load_config(SMOKE, overrides), cluster(**keys))
    assert told in problem
    assert list(preflight.run_problems(load_config(SMOKE), cluster())) == []


# ---------------------------------------------------------------------------------------------------------- folders
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    problem = preflight.unwritable(tmp_path / "file" / "run", "--run-dir")
    assert problem is not None and "--run-dir" in problem
    assert preflight.unwritable(tmp_path / "new" / "run", "--run-dir") is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left behind"


def test_folders_that_nodes_share(tmp_path: Path) -> None:
    listed = cluster(shared_folders=[tmp_path])
    assert preflight.unseen_by_nodes(listed, "the run folder", tmp_path / "x", "set --run-dir") is None
    problem = preflight.unseen_by_nodes(listed, "the run folder", Path("/srv/x"), "set --run-dir")
    assert problem is not None and f"({tmp_path})" in problem and "set --run-dir" in problem
    problem = preflight.unseen_by_nodes(cluster(), "the run folder", Path("/tmp/x"), "set --run-dir")
    assert problem is not None and "shared_folders" in problem
    inside = tmp_path / "link"
    inside.symlink_to("/srv")
    assert preflight.unseen_by_nodes(listed, "data", inside, "move it") is not None, "links are followed"


def test_file_systems() -> None:
    mounts = "/dev/sda1 / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\ntmpfs /home/me/ram tmpfs rw 0 0\n"
    assert file_system(Path("/home/me/x"), mounts) == "nfs4"
    assert file_system(Path("/home/me/ram/x"), mounts) == "tmpfs"
    assert file_system(Path("/homes"), mounts) == "ext4"


@pytest.mark.parametrize(("seconds", "text"), [(300, "00:05:00"), (86400, "1-00:00:00"), (131415, "1-12:30:15")])
def test_clock(seconds: int, text: str) -> None:
    assert clock(seconds) == text

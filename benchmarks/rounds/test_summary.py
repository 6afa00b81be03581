"""The arithmetic of the report, on results made by hand: `pytest benchmarks/rounds`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from contenders import CELLS, CONTENDERS, Cell, choose, choose_cells
from processes import cpu_seconds, process_tree, pss_kib, tree_cpu_seconds, tree_pss_mib
from run import per_round
from summary import markdown, paired_ratios, select, steady
from workload import build_network, draw_cohort, generate_client


def made_run(contender: str, repetition: int, seconds: list[float], precision: str = "float32") -> dict[str, object]:
    return {
        "contender": contender,
        "model": "cnn",
        "precision": precision,
        "repetition": repetition,
        "seconds_per_round": seconds,
        "pss_mib": 400.0 + repetition,
        "processes": 3,
        "cpu_seconds_per_round": 1.5,
        "versions": {"torch": "2"},
        "command": ["python", contender],
    }


def test_first_round_is_left_out() -> None:
    assert steady(made_run("bare", 0, [9.0, 1.0, 3.0, 2.0])) == 2.0


def test_ratios_pair_repetitions_even_out_of_order() -> None:
    above = [made_run("fedhpc", 0, [9, 2.0, 2.0]), made_run("fedhpc", 1, [9, 6.0, 6.0])]
    below = [made_run("bare", 1, [9, 2.0, 2.0]), made_run("bare", 0, [9, 1.0, 1.0])]
    assert paired_ratios(above, below) == [2.0, 3.0]


def test_bfloat16_cell_compares_with_float32_of_pfl() -> None:
    cell = Cell("cnn", "bfloat16")
    runs = [made_run("pfl", 0, [9, 4.0, 4.0]), made_run("fedhpc", 0, [9, 3.0, 3.0], "bfloat16")]
    assert paired_ratios(select(runs, "fedhpc", cell), select(runs, "pfl", cell)) == [0.75]
    document = {
        "config": {
            "contenders": ["fedhpc", "pfl"],
            "cells": [{"model": "cnn", "precision": "bfloat16"}],
            "ranks": 2,
            "repetitions": 1,
            "rounds": 3,
            "num_clients": 100,
        },
        "machine": {
            "hardware": "h",
            "cpu": "c",
            "cores": 2,
            "memory_gib": 1,
            "kernel": "k",
            "load_before": 0,
            "load_after": 0,
        },
        "runs": runs,
        "date": "d",
        "commit": "c",
        "command": "x",
    }
    text = markdown(document)
    assert "| cnn bfloat16 | fedhpc / pfl | **0.750** | 0.750 |" in text
    times = "**4.000** (4.000-4.000) | 4.000-4.000 | 1.500 | 9.00 (9.00-9.00) | 400 | 3 |"
    assert f"| cnn bfloat16 | pfl (float32) | {times}" in text


def test_unknown_and_repeated_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'flower', which is none of bare"):
        choose("bare,flower")
    with pytest.raises(ValueError, match="names one twice"):
        choose("bare,bare")
    with pytest.raises(ValueError, match="--precisions names 'float16'"):
        choose_cells("cnn", "float16")
    with pytest.raises(ValueError, match="leaves nothing"):
        choose_cells("tiny", "bfloat16")
    assert choose_cells("cnn,tiny", "float32,bfloat16") == list(CELLS)


def test_torchrun_only_for_several_ranks() -> None:
    pfl = CONTENDERS["pfl"]
    assert "torch.distributed.run" in pfl.command(CELLS[0], 2, 8, 100)
    assert "torch.distributed.run" not in pfl.command(CELLS[0], 1, 8, 100)
    assert pfl.command(CELLS[1], 2, 8, 100)[-3] == "float32"


def test_memory_of_a_process_tree() -> None:
    assert pss_kib("55f0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  2048 kB\nPss:  1024 kB\n") == 1024
    with pytest.raises(ValueError, match="no line 'Pss:'"):
        pss_kib("Rss: 1 kB\n")
    assert os.getpid() in process_tree(os.getppid())
    pss, count = tree_pss_mib(os.getpid())
    assert count >= 1
    assert pss > 1


def test_processor_seconds_of_steady_rounds() -> None:
    stat = "7 (a ) b) S 1 7 7 0 -1 4194304 500 0 0 0 250 50 0 0 20 0 1 0 5 1000 1"
    assert cpu_seconds(stat, 100) == 3.0
    assert tree_cpu_seconds(os.getpid()) > 0
    assert per_round({1: 2.0, 7: 8.0}, 8) == 1.0
    assert per_round({1: 2.0}, 8) is None


def test_workload_is_the_published_one() -> None:
    assert sum(parameter.numel() for parameter in build_network("cnn").parameters()) == 1_626_442
    assert len(set(draw_cohort(3, 100, 0))) == 10
    assert draw_cohort(3, 100, 0) == draw_cohort(3, 100, 0) != draw_cohort(4, 100, 0)
    images, labels = generate_client(7, 0)
    assert images.shape == (50, 32, 32, 3)
    assert labels.shape == (50,)
    assert not images.equal(generate_client(8, 0).images)

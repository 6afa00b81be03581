"""benchmarks/fedmvp/study.py: every setting of it is a valid config for each of its arms and for its encoders."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedhpc.config.load import load_config
from tests.conftest import ROOT


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study", ROOT / "benchmarks" / "fedmvp" / "study.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["study"] = module  # dataclasses ask for it
    spec.loader.exec_module(module)
    del sys.modules["study"]
    return module


STUDY = load()


@pytest.mark.parametrize("setting", list(STUDY.SETTINGS))
def test_a_setting_is_valid_and_says_what_it_is_named_for(setting: str) -> None:
    told = STUDY.SETTINGS[setting]
    for arm in told.arms:
        config: Any = load_config(STUDY.CONFIGS / f"{arm}.yaml", STUDY.overrides(setting, arm, 7, Path("out")))
        assert config.random_seed == 7 and config.missing is not None and config.data.path.name == "pbc_1500.h5"
        if config.public is not None:
            assert config.public.path.name == "pbc_foundation.h5", "clients keep all of their rows"
        for modality in config.model.modalities:
            kind, frozen = told.encoders[modality], getattr(config.model, modality)
            assert frozen.pretrained.endswith(f"out/encoders/{kind}/{modality}") and frozen.freeze
            pre: Any = load_config(STUDY.CONFIGS / f"{kind}.yaml", [])
            assert pre.data.path.name == "pbc_foundation.h5" and pre.missing is None
            reads_text = "text" in config.model.modalities
            assert pre.data.max_tokens == 36 and config.data.max_tokens == (36 if reads_text else None)
            assert getattr(pre.model, modality).name == frozen.name


def test_settings_differ_in_what_they_are_named_for() -> None:
    found: dict[str, Any] = {}
    for setting in STUDY.SETTINGS:
        found[setting] = load_config(STUDY.CONFIGS / "fedmvp.yaml", STUDY.overrides(setting, "fedmvp", 1, Path("out")))
    assert [found[s].missing.ratio for s in ("beta_0.3", "beta_0.5", "main")] == [[0.3], [0.5], [0.8]]
    assert found["iid"].partition.kind == "iid" and found["dirichlet_0.1"].partition.alpha == 0.1
    assert (found["main"].missing.rule, found["mnar"].missing.rule) == ("random", "label")
    assert [found["broken_client"].noise.rate_of(k) for k in (0, 1, 9)] == [0.8, 0, 0]

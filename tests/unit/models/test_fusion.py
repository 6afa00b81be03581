"""Late fusion: which blocks there are, who owns them, and what a batch without a modality touches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedhpc.algorithms.objectives import fused_cross_entropy
from fedhpc.config.fusion import FusionConfig
from fedhpc.interfaces import Batch, DataSpec, FusionSpec
from fedhpc.models.blocks import FlatModel
from fedhpc.models.fusion import FusionModel
from fedhpc.models.tabular import build_tabular_encoder

HEADS = (("a",), ("b",), ("a", "b"), ("a", "b", "c"))
TABULAR = {"a": {"widths": [5]}, "b": {"widths": []}, "c": {"widths": [4], "dropout": 0}}
COLUMNS = {"a": 3, "b": 2, "c": 6}


def model(heads: Any = HEADS, probes: tuple[str, ...] = (), beside: Any = "none", **keys: Any) -> FusionModel:
    torch.manual_seed(0)
    config = FusionConfig.model_validate({"kind": "fusion", "tabular": TABULAR, **keys})
    spec = FusionSpec(columns=COLUMNS, heads=heads, probes=probes, beside=beside)
    return FusionModel(config, DataSpec(num_classes=3, fusion=spec))


def batch(names: str, rows: int = 4) -> Batch:
    torch.manual_seed(1)
    values: dict[str, Tensor] = {f"tabular/{m}": torch.randn(rows, COLUMNS[m]) for m in names}
    return {**values, "label": torch.arange(rows) % 3, "row": torch.arange(rows)}


def test_blocks_are_encoders_heads_and_probes() -> None:
    flat = FlatModel(model(probes=("c",)))
    assert set(flat.blocks) == {
        "encoder/a", "encoder/b", "encoder/c", "head/a", "head/b", "head/a+b", "head/a+b+c", "probe/c",
    }  # fmt: skip
    assert flat.submodules("head/a+b"), "found by name, so that it can be frozen"


def test_a_client_owns_what_its_modalities_need() -> None:
    net = model(probes=("c",))
    assert net.blocks_of(frozenset("ab")) == {"encoder/a", "encoder/b", "head/a+b"}
    assert net.blocks_of(frozenset("abc")) == {"encoder/a", "encoder/b", "encoder/c", "head/a+b+c", "probe/c"}
    assert net.columns_of(frozenset("ab")) == {"tabular/a", "tabular/b"}


@pytest.mark.parametrize("held", ["a", "b", "ab", "abc"])
def test_only_owned_blocks_get_gradients(held: str) -> None:
    net = model(probes=("c",))
    flat = FlatModel(net)
    fused_cross_entropy(net(batch(held)), batch(held)).backward()
    moved = {name for name, ps in flat.parameters.items() if any(p.grad is not None for p in ps)}
    assert moved == {name for name in net.blocks_of(frozenset(held)) if not name.startswith("probe/")}


def test_a_probe_learns_without_moving_its_encoder() -> None:
    net = model(probes=("c",))
    out = net(batch("abc"))
    torch.nn.functional.cross_entropy(out["probe/c"], batch("abc")["label"]).backward()
    assert all(p.grad is None for p in net.encoders.parameters())
    assert all(p.grad is not None for p in net.probes["c"].parameters())


def test_heads_beside_a_clients_own() -> None:
    assert set(model(beside="single")(batch("abc"))) >= {"head/a", "head/b", "head/a+b+c"}
    assert "head/a+b" not in model(beside="single")(batch("abc"))
    everything = model(beside="all")
    out = everything(batch("abc"))
    assert {name for name in out if name.startswith("head/")} == {"head/a", "head/b", "head/a+b", "head/a+b+c"}
    assert out["logits"] is out["head/a+b+c"]
    assert everything.blocks_of(frozenset("ab")) == {"encoder/a", "encoder/b", "head/a", "head/b", "head/a+b"}


def test_zero_filling_runs_everything_on_zeros() -> None:
    net = model(heads=(("a", "b", "c"),), missing="zeros").eval()
    filled = {**batch("a"), "tabular/b": torch.zeros(4, 2), "tabular/c": torch.zeros(4, 6)}
    assert torch.equal(net(batch("a"))["logits"], net(filled)["logits"])
    assert net.blocks_of(frozenset("a")) == {"encoder/a", "encoder/b", "encoder/c", "head/a+b+c"}


def test_a_merged_combination_has_zero_features_for_what_it_lacks() -> None:
    config = FusionConfig.model_validate({"kind": "fusion", "tabular": TABULAR})
    spec = FusionSpec(columns=COLUMNS, heads=(("a", "b", "c"),), head_of={("a", "c"): ("a", "b", "c")})
    net = FusionModel(config, DataSpec(num_classes=3, fusion=spec)).eval()
    out = net(batch("ac"))
    features = torch.cat([out["features/a"], torch.zeros(4, 16), out["features/c"]], dim=1)
    assert torch.equal(out["logits"], net.heads["a+b+c"](features))
    assert net.blocks_of(frozenset("ac")) == {"encoder/a", "encoder/c", "head/a+b+c"}, "no encoder of b"


def test_modality_dropout_leaves_one_modality_in_every_row() -> None:
    net = model(heads=(("a", "b", "c"),), modality_dropout=0.9)
    features = {m: torch.ones(500, 16) for m in "abc"}
    kept = net._drop_modalities(features)
    alive = torch.stack([x[:, 0] for x in kept.values()], dim=1)
    assert int(alive.sum(1).min()) == 1 and 1 <= float(alive.sum(1).mean()) < 1.6
    assert net.eval()._drop_modalities(features) is features


def test_a_batch_without_a_classifier_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"the batch has a\+c, for which there is no classifier; there are some for a, b"
    ):
        model()(batch("ac"))
    with pytest.raises(ValueError, match="the batch has no modality"):
        model()({"label": torch.zeros(2)})


@pytest.mark.parametrize(
    ("network", "columns", "parameters"),
    [
        # 20531-16384-8192-4096-2048-512-128-64-16: 513.7M (ALGORITHMS.md C.1); the others by hand.
        ("mrna_full", 20531, 513_695_440),
        ("mrna", 20531, 20531 * 2048 + 2048 + 2048 * 1024 + 1024 + 1024 * 64 + 64 + 64 * 16 + 16),
        ("image_features", 150, 150 * 64 + 64 + 64 * 64 + 64 + 64 * 16 + 16),
        ("clinical", 11, 11 * 16 + 16),
    ],
)
def test_published_widths(network: str, columns: int, parameters: int) -> None:
    from fedhpc.config.fusion import TabularConfig

    with torch.device("meta"):
        encoder = build_tabular_encoder(TabularConfig.model_validate({"network": network}), columns, 16)
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_pictures_and_texts_go_through_ready_made_encoders() -> None:
    config = FusionConfig.model_validate(
        {
            "kind": "fusion",
            "image": {"name": "test_resnet"},
            "text": {
                "name": "bert",
                "options": {
                    "hidden_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "intermediate_size": 16,
                },
            },
        }
    )
    spec = DataSpec(3, (32, 32), 50, 8, 0, 4, FusionSpec(heads=(("image",), ("image", "text"))))
    net = FusionModel(config, spec).eval()
    pictures, tokens = torch.randn(2, 3, 32, 32), torch.randint(1, 50, (2, 8))
    assert net({"image": pictures})["logits"].shape == (2, 4)
    assert net({"image": pictures, "tokens": tokens})["features/text"].shape == (2, 16)
    assert net.modalities == ("image", "text")


def test_combinations_keep_the_models_order() -> None:
    assert model().combination(frozenset("ca")) == ("a", "c")

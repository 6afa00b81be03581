import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from fedhpc.algorithms.objectives import build_loss, image_text_alignment
from fedhpc.config.load import load_config
from fedhpc.config.objectives import ClipConfig, ConvirtConfig, GloriaConfig, PairObjective, SiglipConfig
from fedhpc.config.schema import DualEncoderConfig
from fedhpc.interfaces import DataSpec
from fedhpc.models.blocks import FlatModel
from fedhpc.models.dual_encoder import AlignBlock, DualEncoder, ProjectionHead
from fedhpc.models.zoo import build_model
from tests.conftest import ROOT

SPEC = DataSpec(image_channels=1, image_size=(64, 64), vocab_size=50, max_tokens=12)
IMAGE = {"name": "vit_tiny_patch16_224", "options": {"embed_dim": 32, "depth": 1, "num_heads": 2}}
RESNET = {"name": "resnet10t", "options": {"channels": [8, 8, 16, 16], "stem_width": 8}}
TEXT = {
    "name": "bert",
    "options": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
}
OBJECTIVES = {
    "clip": ClipConfig(name="clip"),
    "convirt": ConvirtConfig(name="convirt"),
    "siglip": SiglipConfig(name="siglip"),
    "gloria": GloriaConfig(name="gloria"),
}


def build(objective: PairObjective | None = None, spec: DataSpec = SPEC, **keys: object) -> DualEncoder:
    section = {"kind": "dual_encoder", "image": IMAGE, "text": TEXT, "head_hidden": 24, "embed_dim": 8, **keys}
    model = build_model(DualEncoderConfig(**section), spec, objective)  # type: ignore[arg-type]
    assert isinstance(model, DualEncoder)
    return model


def make_batch(rows: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 50, (rows, 12), generator=generator)
    tokens[0, 5:] = 0
    return {"image": torch.randn(rows, 1, 64, 64, generator=generator), "tokens": tokens}


# ---------------------------------------------------------------------------------- align block
def test_align_block_is_a_vit_layer_read_at_its_first_token() -> None:
    from timm.models.vision_transformer import Block

    torch.manual_seed(0)
    ours = AlignBlock(16, 4, norm_first=True)
    theirs = Block(16, 4, qkv_bias=True, norm_layer=nn.LayerNorm)
    for p in ours.parameters():
        nn.init.normal_(p, std=0.5)
    attention = theirs.attn
    key_bias = torch.randn(16)  # cancels
    attention.qkv.weight.data = torch.cat([ours.query.weight, ours.key.weight, ours.value.weight])
    attention.qkv.bias.data = torch.cat([ours.query.bias, key_bias, ours.value.bias])
    attention.proj.load_state_dict(ours.out.state_dict())
    theirs.norm1.load_state_dict(ours.norm1.state_dict())
    theirs.norm2.load_state_dict(ours.norm2.state_dict())
    theirs.norm1.eps = theirs.norm2.eps = ours.norm1.eps
    theirs.mlp.fc1.load_state_dict(ours.mlp[0].state_dict())
    theirs.mlp.fc2.load_state_dict(ours.mlp[2].state_dict())
    tokens = torch.randn(3, 7, 16)
    torch.testing.assert_close(ours(tokens), theirs(tokens)[:, 0], rtol=1e-4, atol=1e-5)


def test_align_block_is_a_bert_layer_read_at_its_first_token() -> None:
    torch.manual_seed(0)
    ours = AlignBlock(16, 4, norm_first=False)
    for p in ours.parameters():
        nn.init.normal_(p, std=0.5)
    config = BertConfig(hidden_size=16, num_attention_heads=4, intermediate_size=64, attn_implementation="eager")
    theirs = BertLayer(config).eval()
    own = theirs.attention.self
    own.query.load_state_dict(ours.query.state_dict())
    own.key.weight.data = ours.key.weight
    own.value.load_state_dict(ours.value.state_dict())
    theirs.attention.output.dense.load_state_dict(ours.out.state_dict())
    theirs.attention.output.LayerNorm.load_state_dict(ours.norm1.state_dict())
    theirs.intermediate.dense.load_state_dict(ours.mlp[0].state_dict())
    theirs.output.dense.load_state_dict(ours.mlp[2].state_dict())
    theirs.output.LayerNorm.load_state_dict(ours.norm2.state_dict())
    tokens = torch.randn(2, 5, 16)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    expected = theirs(tokens, torch.where(mask, 0.0, -1e9)[:, None, None, :])
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(ours(tokens, mask), expected[:, 0], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------- projection head
def test_projection_head_with_batch_norm_by_hand() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(6, 10, 4, "batch")
    x = torch.randn(5, 6)

    def norm(y: torch.Tensor) -> torch.Tensor:
        return (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt()

    hidden = norm(x @ head.linear1.weight.T).relu()
    expected = F.normalize(norm(hidden @ head.linear2.weight.T), dim=-1)
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_refuses_to_train_on_one_row_layer_norm_does_not() -> None:
    with pytest.raises(ValueError, match="head_norm: layer"):
        ProjectionHead(6, 10, 4, "batch")(torch.randn(1, 6))
    assert ProjectionHead(6, 10, 4, "batch").eval()(torch.randn(1, 6)).shape == (1, 4)
    assert ProjectionHead(6, 10, 4, "layer")(torch.randn(1, 6)).shape == (1, 4)


# ---------------------------------------------------------------------------------- forward
@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("head_norm", ["batch", "layer"])
@pytest.mark.parametrize("image", [IMAGE, RESNET])
def test_outputs(align: bool, head_norm: str, image: dict[str, object]) -> None:
    model = build(align=align, head_norm=head_norm, image=image)
    out = model(make_batch())
    seen = {name: out.pop(name) for name in ("image_tokens", "text_tokens", "text_mask")}
    for name in ("image", "text"):
        assert torch.equal(seen[f"{name}_tokens"][:, 0], out[f"{name}_features"])
    assert seen["text_mask"].shape == seen["text_tokens"].shape[:2]
    assert (seen["image_tokens"].shape[1] > 1) == align
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "image": (4, 8),
        "text": (4, 8),
        "image_features": (4, model.image_encoder.width),
        "text_features": (4, 16),
        "log_temperature": (1,),
    }
    for name in ("image", "text"):
        torch.testing.assert_close(out[name].norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("align", [True, False])
def test_given_tokens_replace_the_encoders(align: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(align=align).eval()
    batch = make_batch()
    out = model(batch)
    for encoder in (model.image_encoder, model.text_encoder):
        monkeypatch.setattr(encoder, "forward", lambda *_: pytest.fail("an encoder ran again"))
        monkeypatch.setattr(encoder, "features", lambda *_: pytest.fail("an encoder ran again"), raising=False)
    again = model({**batch, "image_tokens": out["image_tokens"], "text_tokens": out["text_tokens"]})
    for name in ("image", "text"):
        assert torch.equal(again[name], out[name])


def test_one_modality_gives_the_same_as_both() -> None:
    model = build().eval()
    batch = make_batch()
    both = model(batch)
    image = model({"image": batch["image"]})
    text = model({"tokens": batch["tokens"]})
    assert set(image) == {"image", "image_features", "image_tokens", "log_temperature"}
    assert set(text) == {"text", "text_features", "text_tokens", "text_mask", "log_temperature"}
    assert torch.equal(image["image"], both["image"])
    assert torch.equal(text["text"], both["text"])


def test_batch_without_either_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the batch has label; .* needs image, tokens or both"):
        build()({"label": torch.zeros(3)})


def test_padding_does_not_reach_the_text_embedding() -> None:
    model = build().eval()
    tokens = make_batch()["tokens"][:1]
    torch.testing.assert_close(model({"tokens": tokens})["text"], model({"tokens": tokens[:, :5]})["text"])


def test_temperature() -> None:
    fixed, learned = build(temperature=0.2), build(temperature=0.2, learn_temperature=True)
    assert fixed.log_temperature.shape == (1,)
    assert fixed.temperature().item() == pytest.approx(0.2)
    assert math.exp(fixed(make_batch())["log_temperature"].item()) == pytest.approx(0.2)
    assert not fixed.log_temperature.requires_grad
    image_text_alignment(learned(make_batch()), make_batch()).backward()
    assert learned.log_temperature.grad is not None
    assert learned.log_temperature.grad.abs().item() > 0


# ---------------------------------------------------------------------------------- gradients, blocks
@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("head_norm", ["batch", "layer"])
@pytest.mark.parametrize("image", [IMAGE, RESNET])
def test_gradient_reaches_every_trainable_parameter(align: bool, head_norm: str, image: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = build(align=align, head_norm=head_norm, image=image, learn_temperature=True)
    with torch.no_grad():  # ResNet's last norms start at zero, which hides the gradient of what lies before them
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and not parameter.any():
                parameter.fill_(0.5)
    image_text_alignment(model(make_batch(8)), make_batch(8)).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    # No parameter that the loss cannot depend on: apart from attention's key biases (they cancel in the softmax) and
    # embeddings of absent tokens, gradients are more than rounding errors.
    tiny = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() < 1e-9]
    assert [n for n in tiny if "key.bias" not in n] == []


def test_blocks_cover_the_model_and_leave_out_what_is_frozen() -> None:
    model = build(learn_temperature=True)
    blocks = FlatModel(model).shared
    parts = {f"{part}/{modality}" for part in ("encoder", "align", "head") for modality in ("image", "text")}
    assert set(model.block_prefixes) == set(blocks) == parts | {"temperature"}
    assert sum(len(b.layout.specs) for b in blocks.values()) == sum(
        1 for _, t in [*model.named_parameters(), *model.named_buffers()] if t.is_floating_point()
    )
    assert dict(blocks["temperature"])["log_temperature"].shape == (1,)
    frozen = build(image={**IMAGE, "freeze": True}, align=False)
    assert set(FlatModel(frozen).shared) == {"encoder/text", "head/image", "head/text"}


def test_frozen_encoder_gets_no_gradient_and_its_neighbours_do() -> None:
    model = build(image={**RESNET, "freeze": True}, text={**TEXT, "freeze": True}).train()
    statistics = {n: b.clone() for n, b in model.image_encoder.named_buffers()}
    image_text_alignment(model(make_batch()), make_batch()).backward()
    assert all(p.grad is None for n, p in model.named_parameters() if "encoder." in n)
    assert all(p.grad is not None for n, p in model.named_parameters() if "_align." in n or "_head." in n)
    assert all(torch.equal(statistics[n], b) for n, b in model.image_encoder.named_buffers())


def test_copy_is_independent_and_equal() -> None:
    model = build().eval()
    twin = copy.deepcopy(model)
    assert torch.equal(model(make_batch())["image"], twin(make_batch())["image"])
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    assert not torch.equal(model(make_batch())["image_features"], twin(make_batch())["image_features"])


def test_same_seed_same_model() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build())
    for (name, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_align_heads_must_divide_both_widths() -> None:
    with pytest.raises(ValueError, match=r"align_heads: 12 does not divide .*image 32, text 16.*: 16 or one"):
        build(align_heads=12)


# ---------------------------------------------------------------------------------- what objectives need
@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("image", [IMAGE, RESNET])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_parameter_learns_under_every_objective(name: str, align: bool, image: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = build(OBJECTIVES[name], align=align, image=image, learn_temperature=True)
    with torch.no_grad():  # ResNet's last norms start at zero, which hides the gradient of what lies before them
        for key, parameter in model.named_parameters():
            if key.endswith("weight") and not parameter.any():
                parameter.fill_(0.5)
    batch = make_batch(8)
    loss = build_loss(load_config(ROOT / "configs" / "smoke" / "fedavg.yaml", [f"objective={{name: {name}}}"]))
    loss(model(batch), batch).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    tiny = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.abs().max() > 1e-9]
    assert [n for n in tiny if "key.bias" not in n] == []


@pytest.mark.parametrize("name", ["clip", "convirt"])
def test_other_objectives_leave_the_model_as_it_is(name: str) -> None:
    torch.manual_seed(0)
    plain = build().state_dict()
    torch.manual_seed(0)
    asked = build(OBJECTIVES[name], temperature=0.07).state_dict()
    assert all(torch.equal(value, asked[key]) for key, value in plain.items())
    assert len(plain) == len(asked)


@pytest.mark.parametrize(
    ("name", "temperature", "learned"),
    [("clip", 0.07, False), ("convirt", 0.1, False), ("siglip", 0.1, True), ("gloria", 0.1, False)],
)
def test_one_key_sets_the_temperature_and_its_default_is_published(
    name: str, temperature: float, learned: bool
) -> None:
    model = build(OBJECTIVES[name])
    assert model.temperature().item() == pytest.approx(temperature)
    assert model.log_temperature.requires_grad == learned
    told = build(OBJECTIVES[name], temperature=0.5, learn_temperature=not learned)
    assert told.temperature().item() == pytest.approx(0.5)
    assert told.log_temperature.requires_grad != learned


def test_siglip_learns_a_bias_beside_the_temperature() -> None:
    model = build(SiglipConfig(name="siglip", bias=-3.0))
    assert model(make_batch())["logit_bias"].tolist() == [-3.0]
    assert set(FlatModel(model).shared["temperature"]) == {"log_temperature", "logit_bias"}
    fixed = FlatModel(build(OBJECTIVES["siglip"], learn_temperature=False))
    assert set(fixed.shared["temperature"]) == {"logit_bias"}


@pytest.mark.parametrize("align", [True, False])
def test_gloria_projects_regions_and_words_in_the_blocks_of_the_heads(align: bool) -> None:
    model = build(OBJECTIVES["gloria"], align=align).eval()
    blocks = FlatModel(model).shared
    for name in ("image", "text"):
        assert f"{name}_local.weight" in blocks[f"head/{name}"]
    batch = make_batch()
    out = model(batch)
    assert out["image_tokens"].shape == (4, 1 + 16, 32)
    local = (model.image_local, model.text_local)
    assert local[0] is not None
    assert local[1] is not None
    torch.testing.assert_close(out["image_regions"], out["image_tokens"][:, 1:] @ local[0].weight.T)
    torch.testing.assert_close(out["text_words"], out["text_tokens"][:, 1:] @ local[1].weight.T)
    again = model({**batch, "image_tokens": out["image_tokens"], "text_tokens": out["text_tokens"]})
    assert all(torch.equal(again[name], out[name]) for name in ("image", "text", "image_regions", "text_words"))
    assert "image_regions" not in model({"tokens": batch["tokens"]})


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"reg_tokens": 2}, 1 + 2 + 16),
        ({"reg_tokens": 2, "class_token": False, "global_pool": "avg"}, 1 + 2 + 16),
        ({"class_token": False, "global_pool": "avg"}, 1 + 16),
    ],
)
def test_regions_are_neither_class_tokens_nor_registers(options: dict[str, object], tokens: int) -> None:
    image = {**IMAGE, "options": {**IMAGE["options"], **options}}  # type: ignore[dict-item]
    out = build(OBJECTIVES["gloria"], image=image)(make_batch())
    assert out["image_tokens"].shape[1] == tokens
    assert out["image_regions"].shape[1] == 16


def test_gloria_refuses_a_network_that_gives_one_position() -> None:
    small = DataSpec(image_channels=1, image_size=(32, 32), vocab_size=50, max_tokens=12)
    with pytest.raises(ValueError, match=r"gloria .*resnet10t gives 1 for pictures of 32 x 32; .*objective.name: clip"):
        build(OBJECTIVES["gloria"], small, image=RESNET)
    assert build(OBJECTIVES["gloria"], image=RESNET)(make_batch())["image_regions"].shape == (4, 4, 8)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_few_steps_learn_a_batch_by_heart(name: str) -> None:
    torch.manual_seed(0)
    model = build(OBJECTIVES[name], head_norm="layer")
    objective = build_loss(load_config(ROOT / "configs" / "smoke" / "fedavg.yaml", [f"objective={{name: {name}}}"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = make_batch(8)
    losses = []
    for _ in range(30):
        loss = objective(model(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]

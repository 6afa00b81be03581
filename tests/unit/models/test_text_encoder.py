from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from fedhpc.config.schema import EncoderConfig
from fedhpc.interfaces import DataSpec
from fedhpc.models.text import TextEncoder, build_text_encoder

SPEC = DataSpec(vocab_size=50, max_tokens=12, pad_token=0)
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOKENS = torch.tensor([[2, 5, 6, 7, 3, 0, 0], [2, 9, 3, 0, 0, 0, 0], [2, 8, 8, 8, 8, 8, 3]])


def build(name: str = "bert", spec: DataSpec = SPEC, **keys: object) -> TextEncoder:
    return build_text_encoder(EncoderConfig(name=name, **keys), spec)


@pytest.fixture(scope="module")
def bert() -> BertModel:
    torch.manual_seed(5)
    return BertModel(BertConfig(vocab_size=50, max_position_embeddings=12, pad_token_id=0, **BERT)).eval()


@pytest.fixture(scope="module")
def folder(bert: BertModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    bert.save_pretrained(path)
    return path


# ---------------------------------------------------------------------------------- forward
def test_hidden_states_of_the_saved_network(bert: BertModel, folder: Path) -> None:
    encoder = build(pretrained=str(folder)).eval()
    expected = bert(input_ids=TOKENS, attention_mask=(TOKENS != 0).long()).last_hidden_state
    assert encoder.width == 16
    assert torch.equal(encoder(TOKENS), expected)


def test_saved_masked_language_model_without_pooler(tmp_path: Path) -> None:
    torch.manual_seed(6)
    model = BertForMaskedLM(BertConfig(vocab_size=50, max_position_embeddings=12, pad_token_id=0, **BERT)).eval()
    model.save_pretrained(tmp_path)
    encoder = build(pretrained=str(tmp_path)).eval()
    expected = model.bert(input_ids=TOKENS, attention_mask=(TOKENS != 0).long()).last_hidden_state
    assert torch.equal(encoder(TOKENS), expected)


def test_padding_does_not_matter() -> None:
    encoder = build(options=BERT).eval()
    torch.testing.assert_close(encoder(TOKENS[:2, :5])[:, 0], encoder(TOKENS[:2])[:, 0])


def test_empty_text_has_a_finite_state() -> None:
    assert torch.isfinite(build(options=BERT).eval()(torch.zeros(1, 4, dtype=torch.int32))).all()


def test_pretrained_cut_to_fewer_layers(bert: BertModel, folder: Path) -> None:
    encoder = build(pretrained=str(folder), options={"num_hidden_layers": 1}).eval()
    states = bert(input_ids=TOKENS, attention_mask=(TOKENS != 0).long(), output_hidden_states=True).hidden_states
    assert torch.equal(encoder(TOKENS), states[1])


def test_folder_as_name(bert: BertModel, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = bert(input_ids=TOKENS, attention_mask=(TOKENS != 0).long()).last_hidden_state
    assert torch.equal(build(str(folder), pretrained=str(folder)).eval()(TOKENS), expected)
    assert not torch.equal(build(str(folder)).eval()(TOKENS), expected)
    assert "set pretrained to load weights" in caplog.text


# ---------------------------------------------------------------------------------- parameters
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bert", BERT),
        ("distilbert", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_dim": 32}),
        ("roberta", BERT),
        ("mpnet", BERT),
        ("electra", {**BERT, "embedding_size": 8}),
    ],
)
@pytest.mark.parametrize("pad_token", [0, 1])
def test_gradient_reaches_every_parameter_at_full_length(name: str, options: dict[str, object], pad_token: int) -> None:
    if name == "mpnet" and pad_token != 1:
        with pytest.raises(ValueError, match="mpnet pads with token 1, the packed set with 0"):
            build(name, options=options)
        return
    encoder = build(name, DataSpec(vocab_size=50, max_tokens=12, pad_token=pad_token), options=options)
    tokens = torch.randint(2, 50, (3, 12))
    encoder(tokens)[:, 0].square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.requires_grad] == []
    assert not any("pooler" in n for n, _ in encoder.named_parameters())


def test_position_table_is_as_long_as_the_texts() -> None:
    encoder = build(options=BERT)
    assert encoder.net.embeddings.position_embeddings.weight.shape == (12, 16)
    roberta = build("roberta", DataSpec(vocab_size=50, max_tokens=12, pad_token=1), options=BERT)
    assert roberta.net.embeddings.position_embeddings.weight.shape == (14, 16)


def test_same_seed_same_weights() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build(options=BERT))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_encoder_stays_in_eval_mode() -> None:
    encoder = build(options=BERT, freeze=True)
    torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert torch.equal(encoder(TOKENS), encoder(TOKENS))  # no dropout


# ---------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"name": "brt"}, "did you mean .*bert"),
        ({"options": {"hiden_size": 16}}, "bert has no hiden_size; did you mean hidden_size"),
        ({"options": {"vocab_size": 16}}, "vocab_size is taken from the packed set"),
        ({"options": {**BERT, "hidden_size": 15}}, "multiple of the number of attention heads"),
        ({"options": {**BERT, "hidden_size": "big"}}, "refuses"),
        ({"options": {**BERT, "max_position_embeddings": 8}}, r"set data\.max_tokens: 8"),
        ({"pretrained": "./nowhere"}, "is no folder"),
        ({"name": "gpt2", "options": {"n_embd": 16, "n_layer": 1, "n_head": 2}}, "does not see the last one"),
        ({"name": "t5", "options": {"d_model": 16, "num_layers": 1, "d_ff": 16, "num_heads": 2}}, "choose an encoder"),
    ],
)
def test_user_mistakes_are_named(keys: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build(**{"name": "bert", **keys})  # type: ignore[arg-type]


def test_vocabulary_of_the_packed_set_must_be_that_of_the_weights(folder: Path) -> None:
    with pytest.raises(ValueError, match=f"pack the set with --tokenizer {folder}"):
        build(spec=DataSpec(vocab_size=400, max_tokens=12), pretrained=str(folder))
    with pytest.raises(ValueError, match="pads with token 0, the packed set with 3"):
        build(spec=DataSpec(vocab_size=50, max_tokens=12, pad_token=3), pretrained=str(folder))


def test_texts_longer_than_pretrained_positions(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"texts of 20 tokens need 20; set data\.max_tokens: 12"):
        build(spec=DataSpec(vocab_size=50, max_tokens=20), pretrained=str(folder))


def test_options_that_do_not_fit_the_weights(folder: Path) -> None:
    with pytest.raises(ValueError, match="cannot be used"):
        build(pretrained=str(folder), options={"hidden_size": 32})
    with pytest.raises(ValueError, match=r"weights lack .*layer\.2"):
        build(pretrained=str(folder), options={"num_hidden_layers": 3})


def test_other_model_type_than_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds a bert; set name: bert"):
        build("roberta", pretrained=str(folder))


def test_pickled_weights_are_refused(bert: BertModel, tmp_path: Path) -> None:
    bert.config.save_pretrained(tmp_path)
    torch.save(bert.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        build(pretrained=str(tmp_path))


def test_set_without_text() -> None:
    with pytest.raises(ValueError, match="has no text"):
        build(spec=DataSpec(image_channels=1, image_size=(8, 8)))


def test_batch_longer_than_built_for() -> None:
    with pytest.raises(ValueError, match=r"set data\.max_tokens: 12"):
        build(options=BERT)(torch.ones(1, 13, dtype=torch.long))

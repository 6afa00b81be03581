"""Generative models as they are loaded from folders: tiny, with random weights, saved by transformers and diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from fedhpc.completion.made import Studio, ensure_made, read_made
from fedhpc.completion.parts import Ranks
from fedhpc.completion.pretrained import Captioner, ClipRanker, Painter, as_packed, as_rgb, without_prompt
from fedhpc.config.completion import CaptionerConfig, PainterConfig, PretrainedConfig
from fedhpc.config.load import load_config
from fedhpc.config.schema import PhantomConfig, RunConfig
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.packers.phantom import write_phantom
from tests.conftest import ROOT

CPU = torch.device("cpu")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "chest", "picture", "colour", "it", ":", "?"]
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    return {
        "blip": save_blip(folder),
        "blip2": save_blip2(folder),
        "clip": save_clip(folder),
        "diffusion": save_diffusion(folder),
    }


def save_blip(folder: Path) -> str:
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    text = {
        "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0,
        "max_position_embeddings": 64, "encoder_hidden_size": 16,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 16,
    }  # fmt: skip
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=8)
    BlipForConditionalGeneration(config).save_pretrained(folder / "blip")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder / "blip")
    return str(folder / "blip")


def save_blip2(folder: Path) -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *WORDS[5:]]
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "intermediate_size": 16, "image_size": 32, "patch_size": 16}
    former = {**small, "intermediate_size": 16, "encoder_hidden_size": 16, "vocab_size": len(words), "pad_token_id": 0}
    text = {
        **small, "model_type": "opt", "vocab_size": len(words), "ffn_dim": 16, "word_embed_proj_dim": 16,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = Blip2Config(
        vision_config=vision, qformer_config=former, text_config=text, num_query_tokens=4, image_token_index=4
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder / "blip2")
    pictures = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(pictures, fast, num_query_tokens=4).save_pretrained(folder / "blip2")
    return str(folder / "blip2")


def clip_text(size: int = 16) -> dict[str, Any]:
    return {
        "vocab_size": len(WORDS), "hidden_size": size, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 32, "bos_token_id": 2, "eos_token_id": 3,
        "pad_token_id": 0, "projection_dim": 8,
    }  # fmt: skip


def tokenizer_of(folder: Path) -> Any:
    from transformers import BertTokenizer

    return BertTokenizer(str(folder / "vocab.txt"), model_max_length=32)


def save_clip(folder: Path) -> str:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 16,
    }  # fmt: skip
    CLIPModel(CLIPConfig(text_config=clip_text(), vision_config=vision, projection_dim=8)).save_pretrained(
        folder / "clip"
    )
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder / "clip")
    save_clip_tokenizer(folder / "clip")
    return str(folder / "clip")


def save_clip_tokenizer(folder: Path) -> Any:
    """CLIP's own kind, of single letters."""
    import json

    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(97, 97 + 3)]
    vocab = ["!", *letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_diffusion(folder: Path) -> str:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, unet=unet, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        text_encoder=CLIPTextModel(CLIPTextConfig(**clip_text())),
        tokenizer=save_clip_tokenizer(folder / "letters"), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder / "diffusion", safe_serialization=True)
    return str(folder / "diffusion")


# -------------------------------------------------------------------------------------------------------------- models
@pytest.mark.parametrize("kind", ["blip", "blip2"])
def test_captions_begin_with_the_coarse_prompt_and_go_on_with_answers(kind: str, models: dict[str, str]) -> None:
    config = CaptionerConfig(model=models[kind], fine=["colour of it ?"], max_new_tokens=4)
    [texts] = Captioner(config, "chest", CPU)(PICTURES, ["", "", ""], 1, 0)
    assert len(texts) == 3
    assert all(text.startswith("a photo of a chest") for text in texts)
    assert all(set(text.replace(",", "").split()) <= set(WORDS) for text in texts), texts
    before = torch.random.get_rng_state()
    tries = Captioner(config, "chest", CPU)(PICTURES, ["", "", ""], 3, 0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len({tuple(texts) for texts in tries}) > 1, "candidates are sampled"
    assert tries == Captioner(config, "chest", CPU)(PICTURES, ["", "", ""], 3, 0)


def test_pictures_are_drawn_from_their_own_seed(models: dict[str, str]) -> None:
    painter = Painter(PainterConfig(model=models["diffusion"], steps=2, size=8), "chest", CPU)
    first = painter(["a b", "c"], ["", ""], (32, 24, 1), [1, 2])
    assert first.shape == (2, 32, 24, 1)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, painter(["a b", "c"], ["", ""], (32, 24, 1), [1, 2]))
    assert (first[0] != painter(["a b", "c"], ["", ""], (32, 24, 1), [5, 2])[0]).any()


def test_a_studio_keeps_the_best_candidate_and_goes_on_where_it_was(models: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "phantom.h5"
    write_phantom(PhantomConfig(num_patients=20, num_sites=2, image_size=32, max_tokens=12), path)
    method = PretrainedConfig(
        method="pretrained",
        image_to_text=CaptionerConfig(model=models["blip"], max_new_tokens=3),
        text_to_image=PainterConfig(model=models["diffusion"], steps=1, size=8),
        supercategory="chest", candidates=2, clip=models["clip"], batch_size=2,
    )  # fmt: skip
    config = load_config(ROOT / "configs/smoke/fedmvp.yaml")
    lacking = {"image": np.array([1, 4, 9]), "text": np.array([2, 3, 11])}
    with PackedFile(path) as packed:
        target = tmp_path / "made.h5"
        stop_after(config, method, packed, lacking, target, parts=2)
        assert not target.is_file()
        assert len(list((tmp_path / "made.h5.parts").glob("*.npz"))) == 2
        ensure_made(target, config, method, packed, lacking, CPU, Ranks())
        scores = ClipRanker(models["clip"], CPU)
        made = read_made(target)
        np.testing.assert_array_equal(made["image"].rows, [1, 4, 9])
        assert made["image"].columns["image"].shape == (3, 32, 32, 1)
        assert made["text"].columns["tokens"].shape == (3, 12)
        with h5py.File(target) as file:
            kept, texts = file["image/score"][()], packed.texts(np.array([1, 4, 9]))
            np.testing.assert_allclose(kept, scores(made["image"].columns["image"], texts), atol=1e-6)
            assert all("chest" in text for text in file["text/text"].asstr()[()])
            once = {name: file[name][()] for name in ("image/image", "text/tokens", "image/candidate")}
        again = tmp_path / "again.h5"
        ensure_made(again, config, method, packed, lacking, CPU, Ranks())
        with h5py.File(again) as file:
            for name, values in once.items():
                np.testing.assert_array_equal(file[name][()], values, err_msg=name)


def stop_after(
    config: RunConfig, method: PretrainedConfig, packed: PackedFile, lacking: Any, path: Path, parts: int
) -> None:
    plain, done = Studio.make, [0]

    def make(self: Studio, name: str, rows: np.ndarray) -> Any:
        if done[0] == parts:
            raise KeyboardInterrupt
        done[0] += 1
        return plain(self, name, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Studio, "make", make)
        with pytest.raises(KeyboardInterrupt):
            ensure_made(path, config, method, packed, lacking, CPU, Ranks())


# ------------------------------------------------------------------------------------------------------------- helpers
def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"completion.image_to_text.model = \./nowhere: no such folder"):
        Captioner(CaptionerConfig(model="./nowhere"), "x", CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot load .*give a folder with config and safetensors"):
        Captioner(CaptionerConfig(model=str(tmp_path / "empty")), "x", CPU)
    with pytest.raises(ValueError, match="cannot load .*give a folder with config and safetensors"):
        Painter(PainterConfig(model=str(tmp_path / "empty")), "x", CPU)


def test_without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install 'fedhpc\[generate\]'"):
        Painter(PainterConfig(model="x/y"), "x", CPU)


def test_pictures_to_and_fro() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    np.testing.assert_array_equal(as_packed(as_rgb(grey), (8, 8, 1)), grey)
    assert as_packed(as_rgb(grey), (4, 6, 3)).shape == (4, 6, 3)
    with pytest.raises(ValueError, match="the set has 2 channels"):
        as_rgb(np.zeros((4, 4, 2), np.uint8))


@pytest.mark.parametrize(
    ("text", "prompt", "rest"),
    [
        ("A photo of  a cell with x", "a photo of a cell", "with x"),
        ("with x", "a photo", "with x"),
        ("", "a", ""),
        ("what is it? an x", "What is it ?", "an x"),
        ("a b", "a b", ""),
    ],
)
def test_repeated_prompts_are_cut(text: str, prompt: str, rest: str) -> None:
    assert without_prompt(text, prompt) == rest


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({}, "nothing to complete with"),
        ({"image_to_text": {"model": "m"}, "candidates": 2}, "set completion.clip, a CLIP folder or hub id"),
        ({"image_to_text": {"model": "m", "coarse": "a {label}"}}, "names the class that is to be learned"),
        ({"text_to_image": {"model": "m", "prompt": "a {bird}"}}, r"has \{bird\}; fields are supercategory"),
    ],
)
def test_refused_configs(keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        PretrainedConfig.model_validate({"method": "pretrained", **keys})

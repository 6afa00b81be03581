"""``fedhpc export``: a run's encoders as folders that timm and transformers load, the rest beside them, a model card.

    DIR/image/   config.json, model.safetensors: timm.create_model("local-dir:DIR/image", pretrained=True,
                 num_classes=0)
    DIR/text/    config.json, model.safetensors, tokenizer: AutoModel, AutoTokenizer
    DIR/heads.safetensors   alignment blocks, heads and temperature, "block//tensor"
    DIR/README.md           model card

What `drop_unused` took out of an encoder is not trained; where a library's strict loading asks for it all the same, it
is there with its initial values, which do not reach the features.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedhpc.config.load import dump_config
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.text import pad_token_of
from fedhpc.downstream.loading import TrainedRun, image_encoder, load_run
from fedhpc.export_card import model_card
from fedhpc.models.blocks import block_of
from fedhpc.models.text import TextEncoder
from fedhpc.models.vision import ImageEncoder

# What a tokenizer's special tokens are called, by family; those that its vocabulary has are declared.
SPECIAL_TOKENS = {
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
# What timm's config says of its own weights: these are others.
THEIRS = (
    *("tag", "license", "origin_url", "paper_ids", "paper_name", "notes", "label_names", "label_descriptions"),
    *("test_input_size", "test_crop_pct"),
)


def export_run(folder: Path, to: Path, client: int | str | None = None) -> None:
    """Export the newest checkpoint of a run folder; `client` as in `load_run`. All or nothing.

    Raises:
        ValueError: `to` holds something already, the image network is none of timm's, or the run cannot be loaded.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"{to} exists and is not empty; set --to to a new folder, or delete it")
    run = load_run(folder, client)
    encoder = image_encoder(run.module)
    if not isinstance(encoder, ImageEncoder):
        name = "" if run.config.model.image is None else run.config.model.image.name
        raise ValueError(
            f"model.image.name: {name} is no timm network, so timm cannot load it; export runs "
            "whose image encoder is one"
        )
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _export_image(encoder, run, partial / "image")
        text = getattr(run.module, "text_encoder", None)
        if text is not None:
            _export_text(text, run, partial / "text")
        save_file(_rest(run.module), partial / "heads.safetensors", metadata={"format": "pt"})
        (partial / "config.yaml").write_text(dump_config(run.config), encoding="utf-8")
        results = folder / "results.json"
        with PackedFile(run.data_path) as packed:
            found = json.loads(results.read_text()) if results.is_file() else None
            (partial / "README.md").write_text(model_card(run, packed, found), encoding="utf-8")
        if to.exists():
            to.rmdir()
        os.replace(partial, to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rest(module: nn.Module) -> dict[str, Tensor]:
    """All tensors outside the encoders, under "block//tensor"."""
    prefixes: Any = module.block_prefixes
    named = {name: block_of(name, prefixes) for name in module.state_dict()}
    return {
        f"{named[name]}//{name}": tensor.detach().cpu().contiguous().clone()
        for name, tensor in module.state_dict().items()
        if not named[name].startswith("encoder/")
    }


# ----------------------------------------------------------------------------------------------------------- pictures
def _export_image(encoder: ImageEncoder, run: TrainedRun, folder: Path) -> None:
    import timm
    from timm.models import save_for_hf

    net: Any = encoder.net
    described: dict[str, Any] = net.pretrained_cfg
    # As timm built it, so that strict loading finds what it expects: no classifier, nothing else left out.
    if not hasattr(net, "_model_args"):
        raise ValueError(f"timm {timm.__version__} does not keep how it built a network; install timm 1.0.31 or later")
    arguments = {**net._model_args, "num_classes": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = timm.create_model(described["architecture"], pretrained=False, **arguments)
    _fill(whole, net, "image")
    data, spec = run.config.data, run.spec
    # timm names no image size of a network that takes any; the pictures' own statistics are the run's.
    statistics = {
        key: [*(values if len(values) > 1 else values * spec.image_channels)]
        for key, values in (("mean", data.image_mean), ("std", data.image_std))
    }
    size = (spec.image_channels, *spec.image_size)
    save_for_hf(
        whole,
        str(folder),
        model_args=arguments,
        model_config={"pretrained_cfg": {**statistics, "input_size": size, "crop_pct": 1.0}},
        safe_serialization=True,
    )
    config = json.loads((folder / "config.json").read_text())
    for key in THEIRS:
        config["pretrained_cfg"].pop(key, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _fill(whole: nn.Module, trained: nn.Module, what: str) -> list[str]:
    """Copy all of `trained` into `whole`. Returns the names of what `whole` has beyond that."""
    state = trained.state_dict()
    report = whole.load_state_dict(state, strict=False)
    assert not report.unexpected_keys, f"{what}: the rebuilt network lacks {report.unexpected_keys}"
    return list(report.missing_keys)


# --------------------------------------------------------------------------------------------------------------- text
def _export_text(encoder: TextEncoder, run: TrainedRun, folder: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    net: Any = encoder.net
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole: Any = AutoModel.from_config(net.config, dtype=torch.float32)
    _fill(whole, net, "text")
    # An untrained pooler would pass for a trained one: left out, so that transformers says that it makes a new one.
    if isinstance(getattr(whole, "pooler", None), nn.Module):
        whole.pooler = None
    logging.disable_progress_bar()
    whole.save_pretrained(folder, safe_serialization=True)
    assert run.tokenizer_json is not None, "a run with a text encoder has text"
    tokenizer = Tokenizer.from_str(run.tokenizer_json)
    pad = tokenizer.id_to_token(pad_token_of(tokenizer))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special = {
        key: name
        for key, names in SPECIAL_TOKENS.items()
        for name in names
        if tokenizer.token_to_id(name) is not None and name != pad
    }
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        model_max_length=run.spec.max_tokens,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    ).save_pretrained(folder)

"""``fedhpc export``: a run's encoders as folders that timm and transformers load, the rest beside them, a model card.

    DIR/image/   config.json, model.safetensors: timm.create_model("local-dir:DIR/image", pretrained=True,
                 num_classes=0); of a vision tower of transformers: CLIPVisionModel.from_pretrained(DIR/image), ...
    DIR/text/    config.json, model.safetensors, tokenizer: AutoModel, AutoTokenizer
    DIR/heads.safetensors   alignment blocks, heads and temperature, "block//tensor"
    DIR/README.md           model card

What `drop_unused` took out of an encoder is not trained; where a library's strict loading asks for it all the same, it
is there with its initial values, which do not reach the features.

Weights go from the checkpoint to the files one tensor after the other: a model of any size is exported by one process.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedhpc.config.load import dump_config
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.text import pad_token_of
from fedhpc.downstream.loading import TrainedRun, image_encoder
from fedhpc.downstream.streamed import stream_run
from fedhpc.export_card import model_card
from fedhpc.federation.tensor_file import write_tensors
from fedhpc.models.blocks import block_of
from fedhpc.models.stowing import FileKeeper, Stowing
from fedhpc.models.text import TextEncoder
from fedhpc.models.towers import Tower
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
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with stream_run(folder, client, partial) as run:
            _export(run, partial)
        if to.exists():
            to.rmdir()
        os.replace(partial, to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _export(run: TrainedRun, to: Path) -> None:
    encoder = image_encoder(run.module)
    if not isinstance(encoder, ImageEncoder):
        image = run.config.model.image
        raise ValueError(
            f"model.image.name: {image.name if image else ''} is no timm network, so timm cannot load it; export runs "
            "whose image encoder is one"
        )
    if isinstance(encoder.net, Tower):
        _export_tower(encoder.net, run, to / "image")
    else:
        _export_image(encoder, run, to / "image")
    text = getattr(run.module, "text_encoder", None)
    if text is not None:
        _export_text(text, run, to / "text")
    _write_rest(run, to / "heads.safetensors")
    (to / "config.yaml").write_text(dump_config(run.config), encoding="utf-8")
    results = run.folder / "results.json"
    with PackedFile(run.data_path) as packed:
        found = json.loads(results.read_text()) if results.is_file() else None
        (to / "README.md").write_text(model_card(run, packed, found), encoding="utf-8")


def _write_rest(run: TrainedRun, path: Path) -> None:
    """All tensors outside the encoders, under "block//tensor"."""
    prefixes: Any = run.module.block_prefixes
    state = run.module.state_dict()
    named = {
        f"{block}//{name}": name for name in state if not (block := block_of(name, prefixes)).startswith("encoder/")
    }
    write_tensors(
        path,
        {key: (state[name].dtype, tuple(state[name].shape)) for key, name in named.items()},
        lambda key: run.value(named[key]),
        {"format": "pt"},
    )


def _write_encoder(make: Callable[[], nn.Module], trained: nn.Module, run: TrainedRun, path: Path) -> nn.Module:
    """What `make` builds, as its library would save it, with the weights of `trained`, a part of the run's model; what
    `trained` lacks has its initial values. Returns what was built; large weights are not in memory."""
    with Stowing(FileKeeper(path.parent)) as stowing, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = make()
    prefix = next(f"{name}." for name, module in run.module.named_modules() if module is trained)
    state, has = whole.state_dict(keep_vars=True), set(trained.state_dict())
    assert has <= set(state), f"{path.parent.name}: the rebuilt network lacks {sorted(has - set(state))}"

    def value(name: str) -> Tensor:
        if name in has:
            return run.value(prefix + name)
        with stowing.present(state[name]) as tensor:
            return tensor.detach().clone()

    described = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    write_tensors(path, described, value, {"format": "pt"})
    return whole


# ----------------------------------------------------------------------------------------------------------- pictures
def _export_image(encoder: ImageEncoder, run: TrainedRun, folder: Path) -> None:
    import timm
    from timm.models._hub import save_config_for_hf

    net: Any = encoder.net
    described: dict[str, Any] = net.pretrained_cfg
    # As timm built it, so that strict loading finds what it expects: no classifier, nothing else left out.
    if not hasattr(net, "_model_args"):
        raise ValueError(f"timm {timm.__version__} does not keep how it built a network; install timm 1.0.31 or later")
    arguments = {**net._model_args, "num_classes": 0}
    folder.mkdir()
    whole = _write_encoder(
        lambda: timm.create_model(described["architecture"], pretrained=False, **arguments),
        net,
        run,
        folder / "model.safetensors",
    )
    data, spec = run.config.data, run.spec
    # timm names no image size of a network that takes any; the pictures' own statistics are the run's.
    statistics = {
        key: [*(values if len(values) > 1 else values * spec.image_channels)]
        for key, values in (("mean", data.image_mean), ("std", data.image_std))
    }
    size = (spec.image_channels, *spec.image_size)
    save_config_for_hf(
        whole,
        str(folder / "config.json"),
        model_args=arguments,
        model_config={"pretrained_cfg": {**statistics, "input_size": size, "crop_pct": 1.0}},
    )
    config = json.loads((folder / "config.json").read_text())
    for key in THEIRS:
        config["pretrained_cfg"].pop(key, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _export_tower(tower: Tower, run: TrainedRun, folder: Path) -> None:
    """A vision tower as transformers saves it: what model.image.pretrained takes."""
    net: Any = tower.net
    folder.mkdir()
    whole = _write_encoder(lambda: type(net)(net.config).float(), net, run, folder / "model.safetensors")
    _save_settings(whole, folder)


def _save_settings(whole: Any, folder: Path) -> None:
    """config.json, as `save_pretrained` writes it."""
    whole.config.dtype = "float32"
    whole.config.architectures = [type(whole).__name__]
    whole.config.save_pretrained(folder)


# --------------------------------------------------------------------------------------------------------------- text
def _export_text(encoder: TextEncoder, run: TrainedRun, folder: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoModel, PreTrainedTokenizerFast

    net: Any = encoder.net

    def make() -> nn.Module:
        whole: Any = AutoModel.from_config(net.config, dtype=torch.float32)
        # An untrained pooler would pass for a trained one: left out, so that transformers says that it makes a new one.
        if isinstance(getattr(whole, "pooler", None), nn.Module):
            whole.pooler = None
        return cast(nn.Module, whole)

    folder.mkdir()
    _save_settings(_write_encoder(make, net, run, folder / "model.safetensors"), folder)
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

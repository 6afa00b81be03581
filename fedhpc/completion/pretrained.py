"""Generative models as they are loaded from folders or hub ids: image to text by transformers, text to image by
diffusers, and CLIP, which says how well both fit. Pickled weights are not read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fedhpc.config.completion import CaptionerConfig, PainterConfig

Array = np.ndarray


class Captioner:
    """Texts for pictures: a coarse prompt that the model continues, then answers to finer ones."""

    def __init__(self, config: CaptionerConfig, supercategory: str, device: torch.device) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._config, self._supercategory, self._device = config, supercategory, device
        key = "completion.image_to_text.model"
        self._processor: Any = _loaded(key, config.model, AutoProcessor.from_pretrained)
        load = AutoModelForImageTextToText.from_pretrained
        net: Any = _loaded(key, config.model, lambda where: load(where, use_safetensors=True, dtype=torch.float32))
        self._net = net.to(device).eval()

    def __call__(self, pictures: Array, labels: Sequence[str], candidates: int, seed: int) -> list[list[str]]:
        """pictures: uint8 [n,H,W,C]; labels: a class name for each, "" where none may be used.

        Returns `candidates` lists of n texts. One candidate is decoded greedily, several are sampled from `seed`.
        """
        images = [as_rgb(picture) for picture in pictures]
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(seed)
            return [self._one(images, labels, sample=candidates > 1) for _ in range(candidates)]

    def _one(self, images: list[Image.Image], labels: Sequence[str], sample: bool) -> list[str]:
        config = self._config
        coarse = [self._filled(config.coarse, label) for label in labels]
        answers = self._answers(images, coarse, sample)
        texts = [f"{prompt} {answer}".strip() for prompt, answer in zip(coarse, answers, strict=True)]
        for question in config.fine:
            asked = [self._filled(question, label) for label in labels]
            for row, answer in enumerate(self._answers(images, asked, sample)):
                texts[row] = f"{texts[row]}, {answer}" if answer else texts[row]
        return texts

    def _filled(self, prompt: str, label: str) -> str:
        return prompt.format(supercategory=self._supercategory, label=label, text="", attributes="", style="").strip()

    @torch.no_grad()
    def _answers(self, images: list[Image.Image], prompts: list[str], sample: bool) -> list[str]:
        inputs = self._processor(images=images, text=prompts, return_tensors="pt", padding=True).to(self._device)
        tokens = self._net.generate(**inputs, max_new_tokens=self._config.max_new_tokens, do_sample=sample)
        texts = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [without_prompt(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]


class Painter:
    """Pictures for texts, by a diffusers pipeline."""

    def __init__(self, config: PainterConfig, supercategory: str, device: torch.device) -> None:
        try:
            from diffusers import DiffusionPipeline
        except ImportError as error:
            raise ValueError(
                "completion.text_to_image needs diffusers, which is not installed; pip install 'fedhpc[generate]', or "
                "remove text_to_image"
            ) from error
        self._config, self._supercategory = config, supercategory
        key = "completion.text_to_image.model"
        load = DiffusionPipeline.from_pretrained
        pipe: Any = _loaded(key, config.model, lambda where: load(where, use_safetensors=True))
        pipe.set_progress_bar_config(disable=True)
        self._pipe = pipe.to(device)

    def __call__(
        self, texts: Sequence[str], labels: Sequence[str], shape: tuple[int, int, int], seeds: Sequence[int]
    ) -> Array:
        """Pictures uint8 [n,H,W,C] of `shape` for n texts, each from a seed of its own."""
        config = self._config
        attributes = "".join(f", {one}" for one in config.attributes)
        style = f", {config.style}" if config.style else ""
        prompts = [
            config.prompt.format(
                supercategory=self._supercategory, text=text, label=label, attributes=attributes, style=style
            )
            for text, label in zip(texts, labels, strict=True)
        ]
        size = {} if config.size is None else {"height": config.size, "width": config.size}
        found = self._pipe(
            prompts,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pil",
            **size,
        )
        return np.stack([as_packed(image, shape) for image in found.images])


class ClipRanker:
    """Cosine of a picture and a text in the space of a CLIP model."""

    def __init__(self, model: str, device: torch.device) -> None:
        from transformers import CLIPModel, CLIPProcessor

        self._device = device
        self._processor: Any = _loaded("completion.clip", model, CLIPProcessor.from_pretrained)
        load = CLIPModel.from_pretrained
        net: Any = _loaded("completion.clip", model, lambda where: load(where, use_safetensors=True))
        self._net = net.to(device).eval()

    @torch.no_grad()
    def __call__(self, pictures: Array, texts: Sequence[str]) -> Array:
        """pictures uint8 [n,H,W,C], n texts -> float32 [n]."""
        inputs = self._processor(
            images=[as_rgb(picture) for picture in pictures],
            text=list(texts),
            return_tensors="pt",
            padding=True,
            truncation=True,
        ).to(self._device)
        out = self._net(**inputs)
        cosine = F.cosine_similarity(out.image_embeds.float(), out.text_embeds.float(), dim=1)
        return np.asarray(cosine.cpu().numpy())


# -------------------------------------------------------------------------------------------------------------- helpers
def as_rgb(picture: Array) -> Image.Image:
    """uint8 [H,W,C] with 1 or 3 channels."""
    if picture.shape[2] not in (1, 3):
        raise ValueError(
            f"generative models read grey or colour pictures, the set has {picture.shape[2]} channels; set "
            "completion.method: neighbour or generator"
        )
    return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).convert("RGB")


def as_packed(image: Image.Image, shape: tuple[int, int, int]) -> Array:
    """uint8 of `shape` [H,W,C]."""
    height, width, channels = shape
    small = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(small, np.uint8).reshape(shape)


def without_prompt(text: str, prompt: str) -> str:
    """What a model put behind its prompt: some repeat it, in small letters and with other blanks."""
    text = " ".join(text.split())
    left = "".join(prompt.lower().split())
    for place, sign in enumerate(text.lower()):
        if not left:
            return text[place:].strip()
        if sign != " ":
            if sign != left[0]:
                return text
            left = left[1:]
    return text if left else ""


def _loaded(key: str, where: str, load: Callable[[str], Any]) -> Any:
    path = Path(where).expanduser()
    if where.startswith((".", "/", "~")) and not path.is_dir():
        raise ValueError(f"{key} = {where}: no such folder; give a folder with config and safetensors, or a hub id")
    try:
        return load(str(path) if path.is_dir() else where)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{key}: cannot load {where}: {error}; give a folder with config and safetensors, or - on a machine with "
            "network - a hub id"
        ) from error

"""Image and text encoders that meet in one space (FedDRA, arXiv 2404.03854; ALGORITHMS.md A.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhpc.config.blocks import block_prefixes
from fedhpc.config.objectives import ClipConfig, GloriaConfig, PairObjective, SiglipConfig
from fedhpc.config.schema import DualEncoderConfig
from fedhpc.interfaces import Batch, BlockName, DataSpec
from fedhpc.models.text import TextEncoder, build_text_encoder
from fedhpc.models.vision import ImageEncoder, build_image_encoder


class AlignBlock(nn.Module):
    """One transformer block over [global token; tokens], of which only the global token comes out.

    norm_first: ViT's order (x + attention(norm x), then x + mlp(norm x)), else BERT's (norm(x + attention x), then
    norm(x + mlp x)). As the other outputs of a last block are never read, only the global token asks, and only it goes
    through the MLP: the same numbers for a fraction of the work. Differs from the paper's BERT layer by having no
    dropout, and by no bias on the keys, which cancels in the softmax.
    """

    def __init__(self, width: int, num_heads: int, *, norm_first: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_first = norm_first
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6 if norm_first else 1e-12)
        self.norm2 = nn.LayerNorm(width, eps=1e-6 if norm_first else 1e-12)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens [B,T,width], mask bool [B,T] (True: attended) -> [B,width]."""
        if self.norm_first:
            x = tokens[:, 0] + self._attend(self.norm1(tokens), mask)
            return x + self.mlp(self.norm2(x))
        x = self.norm1(tokens[:, 0] + self._attend(tokens, mask))
        return self.norm2(x + self.mlp(x))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, _, width = x.shape
        split = (batch, -1, self.num_heads, width // self.num_heads)
        query, key, value = self.query(x[:, :1]), self.key(x), self.value(x)
        query, key, value = (t.view(split).transpose(1, 2) for t in (query, key, value))
        where = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=where)
        return self.out(mixed.transpose(1, 2).reshape(batch, width))


class ProjectionHead(nn.Module):
    """Linear, norm, ReLU, Linear, norm without affine part, L2 norm: [B,width] -> unit vectors [B,embed_dim], float32.

    Linear layers before batch normalisation have no bias: it would cancel, and get rounding errors for a gradient.
    """

    def __init__(self, width: int, hidden: int, embed_dim: int, norm: Literal["batch", "layer"]) -> None:
        super().__init__()
        bias = norm == "layer"
        self.linear1 = nn.Linear(width, hidden, bias=bias)
        self.linear2 = nn.Linear(hidden, embed_dim, bias=bias)
        self.norm1: nn.Module
        self.norm2: nn.Module
        if norm == "batch":
            self.norm1, self.norm2 = nn.BatchNorm1d(hidden), nn.BatchNorm1d(embed_dim, affine=False)
        else:
            self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(embed_dim, elementwise_affine=False)
        self.needs_two = norm == "batch"

    def forward(self, x: Tensor) -> Tensor:
        """ValueError for a training batch of one row under batch normalisation."""
        if self.needs_two and self.training and x.shape[0] < 2:
            raise ValueError(
                "batch normalisation cannot train on a batch of one row; set model.head_norm: layer, a larger "
                "fit.batch_size, or partition.min_examples: 2"
            )
        x = torch.relu(self.norm1(self.linear1(x)))
        return F.normalize(self.norm2(self.linear2(x)).float(), dim=-1)


class DualEncoder(nn.Module):
    """Two encoders, an alignment block and a projection head each, one temperature of shape [1].

    block_prefixes: exchangeable blocks and the prefixes of their parameter names. The temperature is kept as its
    logarithm; it is a parameter without gradient unless it is learned.
    objective: siglip adds a bias, which is always learned, to block "temperature"; gloria adds linear projections of
    all tokens to blocks "head/image" and "head/text".

    Raises ValueError when widths do not fit, and when gloria finds fewer than 2 regions in a picture.
    """

    def __init__(self, config: DualEncoderConfig, spec: DataSpec, objective: PairObjective | None = None) -> None:
        super().__init__()
        objective = objective or ClipConfig(name="clip")
        self.image_encoder: ImageEncoder = build_image_encoder(config.image, spec)
        self.text_encoder: TextEncoder = build_text_encoder(config.text, spec)
        widths = {"image": self.image_encoder.width, "text": self.text_encoder.width}
        self.image_align: AlignBlock | None = None
        self.text_align: AlignBlock | None = None
        if config.align:
            bad = {name: width for name, width in widths.items() if width % config.align_heads}
            if bad:
                raise ValueError(
                    f"model.align_heads: {config.align_heads} does not divide the encoders' widths "
                    f"({', '.join(f'{name} {width}' for name, width in bad.items())}); set a common divisor of "
                    f"{widths['image']} and {widths['text']}: {math.gcd(*widths.values())} or one of its divisors"
                )
            self.image_align = AlignBlock(widths["image"], config.align_heads, norm_first=True)
            self.text_align = AlignBlock(widths["text"], config.align_heads, norm_first=False)
        self.image_head = ProjectionHead(widths["image"], config.head_hidden, config.embed_dim, config.head_norm)
        self.text_head = ProjectionHead(widths["text"], config.head_hidden, config.embed_dim, config.head_norm)
        # Shape [1], not a scalar: DeepSpeed's start-up broadcast fails on 0-dim parameters with gloo.
        temperature = objective.published_temperature if config.temperature is None else config.temperature
        learns = objective.learns_temperature if config.learn_temperature is None else config.learn_temperature
        self.log_temperature = nn.Parameter(torch.full((1,), math.log(temperature)), requires_grad=learns)
        self.logit_bias = (
            nn.Parameter(torch.full((1,), objective.bias)) if isinstance(objective, SiglipConfig) else None
        )
        self.image_local: nn.Linear | None = None
        self.text_local: nn.Linear | None = None
        if isinstance(objective, GloriaConfig):
            regions = self.image_encoder.num_regions()
            if regions < 2:
                height, width = spec.image_size
                raise ValueError(
                    f"objective.name: gloria compares words with regions of a picture, but model.image.name: "
                    f"{config.image.name} gives {regions} for pictures of {height} x {width}; choose a network that "
                    "keeps positions apart (a ViT), pack larger pictures, or set objective.name: clip"
                )
            self.image_local = nn.Linear(widths["image"], config.embed_dim, bias=False)
            self.text_local = nn.Linear(widths["text"], config.embed_dim, bias=False)
        self.block_prefixes: Mapping[BlockName, tuple[str, ...]] = block_prefixes(config)

    def temperature(self) -> Tensor:
        """Similarities are divided by it; [1]."""
        return self.log_temperature.exp()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Embeds what the batch has of "image" [B,C,H,W] and "tokens" [B,L].

        Returns "image" and "text" [B,embed_dim], unit vectors; "image_tokens" and "text_tokens" [B,T,width], what the
        encoders gave, token 0 being the global one; "image_features" and "text_features" [B,width], that token alone;
        "text_mask" bool [B,L], True where attended; always "log_temperature" [1].
        Under siglip always "logit_bias" [1]; under gloria "image_regions" [B,R,embed_dim] and "text_words"
        [B,L-1,embed_dim], which are no unit vectors. Word i is token i + 1 of the mask.
        An encoder whose tokens are in the batch already ("image_tokens", "text_tokens") is not run again: models that
        share frozen encoders share what they give. Raises ValueError when the batch has neither modality.
        """
        if "image" not in batch and "tokens" not in batch:
            has = ", ".join(batch) or "nothing"
            raise ValueError(f"the batch has {has}; a dual encoder needs image, tokens or both")
        out: dict[str, Tensor] = {"log_temperature": self.log_temperature}
        if self.logit_bias is not None:
            out["logit_bias"] = self.logit_bias
        if "image" in batch:
            if "image_tokens" in batch:
                tokens = batch["image_tokens"]
            elif self.image_align is None and self.image_local is None:
                tokens = self.image_encoder.features(batch["image"]).unsqueeze(1)
            else:
                tokens = self.image_encoder(batch["image"])
            features = tokens[:, 0]
            aligned = features if self.image_align is None else self.image_align(tokens)
            out |= {"image_tokens": tokens, "image_features": features, "image": self.image_head(aligned)}
            if self.image_local is not None:
                out["image_regions"] = self.image_local(self.image_encoder.regions(tokens))
        if "tokens" in batch:
            mask = self.text_encoder.mask(batch["tokens"])
            tokens = batch["text_tokens"] if "text_tokens" in batch else self.text_encoder(batch["tokens"], mask)
            features = tokens[:, 0]
            aligned = features if self.text_align is None else self.text_align(tokens, mask)
            out |= {
                "text_tokens": tokens,
                "text_mask": mask,
                "text_features": features,
                "text": self.text_head(aligned),
            }
            if self.text_local is not None:
                out["text_words"] = self.text_local(tokens[:, 1:])
        return out

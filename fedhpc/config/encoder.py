"""The section of a ready-made encoder."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from fedhpc.config.section import Section


class EncoderConfig(Section):
    """An encoder from timm (image) or transformers (text)."""

    name: str
    """timm model name (image: or ``clip_vision_model``, ``siglip_vision_model``, ``blip_2_vision_model``), transformers
    model type (text: ``bert``), or what `pretrained` points to."""
    pretrained: str | None = None
    """Local folder or hub id whose weights are loaded; random weights when not set."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to ``timm.create_model`` or to the transformers config (``hidden_size: 64``)."""
    freeze: bool = False
    """Keep the weights as they are. A frozen parameter crosses no wire."""

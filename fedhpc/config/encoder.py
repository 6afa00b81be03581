"""The section of a ready-made encoder."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, field_validator, model_validator

from fedhpc.config.section import Section

FILE = ".safetensors"


class EncoderConfig(Section):
    """An encoder from timm (image) or transformers (text)."""

    name: str
    """timm model name (image: or ``clip_vision_model``, ``siglip_vision_model``, ``blip_2_vision_model``), transformers
    model type (text: ``bert``), or what `pretrained` points to; that is also the default where it is a folder or a hub
    id."""
    pretrained: str | None = None
    """Local folder or hub id whose weights are loaded; random weights when not set."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to ``timm.create_model`` or to the transformers config (``hidden_size: 64``)."""
    freeze: bool = False
    """Keep the weights as they are. A frozen parameter crosses no wire."""

    @model_validator(mode="before")
    @classmethod
    def _by_its_weights(cls, data: Any) -> Any:
        """A folder or an owner's model says what it is; a tag of timm's or a bare file does not."""
        if isinstance(data, dict) and "name" not in data:
            source = data.get("pretrained")
            if isinstance(source, str) and ("/" in source or source.startswith(".")) and not source.endswith(FILE):
                return {**data, "name": source}
        return data

    @field_validator("options")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        if (odd := _not_plain(value)) is not None:
            raise ValueError(f"{str(odd)[:40]} is no value of an option; set text, finite numbers, true, false or null")
        return value


def _not_plain(value: Any) -> Any:
    """What in a value YAML knows and JSON does not (.inf, !!binary); None where there is nothing such."""
    if isinstance(value, dict):
        return next((odd for item in value.values() if (odd := _not_plain(item)) is not None), None)
    if isinstance(value, list):
        return next((odd for item in value if (odd := _not_plain(item)) is not None), None)
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return None
    return value

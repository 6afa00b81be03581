"""Text encoders from transformers, read as hidden states whose first token stands for the whole text.

transformers is imported when an encoder is built, and only its automatic classes: importing it takes seconds.
"""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedhpc.config.schema import EncoderConfig
from fedhpc.interfaces import DataSpec
from fedhpc.models.shapes import has_values
from fedhpc.models.unused import drop_unused

logger = logging.getLogger(__name__)

FROM_DATA = ("vocab_size", "pad_token_id")
# Their positions count from pad_token + 1, so the table needs as many more rows.
OFFSET_POSITIONS = frozenset(
    {
        *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet"),
        *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)
MAX_PADDING_ROWS = 128  # embedding tables are often rounded up to a multiple of 64 or 128


class TextEncoder(nn.Module):
    """A transformers network; forward gives hidden states [B,L,width], token 0 is the global one.

    width: features a token. frozen: weights stay as they are, and the encoder in eval mode whatever train() says.
    """

    def __init__(self, net: nn.Module, spec: DataSpec, *, freeze: bool = False) -> None:
        super().__init__()
        self.net = net
        self.pad_token = spec.pad_token
        self.max_tokens = spec.max_tokens
        self.frozen = freeze
        other = 0 if spec.pad_token != 0 else 1
        text = torch.full((1, spec.max_tokens), other, dtype=torch.long)
        self.removed = drop_unused(self, lambda: self(text)[:, 0])
        self.eval()
        with torch.no_grad():
            first = self(text)[:, 0]
            self.width: int = first.shape[1]
            if spec.max_tokens > 1:
                text[:, -1] = spec.vocab_size - 1 if spec.vocab_size - 1 != spec.pad_token else spec.vocab_size - 2
                if spec.vocab_size > 3 and has_values(first) and torch.equal(self(text)[:, 0], first):
                    raise ValueError("its first token does not see the last one, as in a decoder")
        self.train()
        if freeze:
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> TextEncoder:
        super().train(mode and not self.frozen)
        return self

    def mask(self, tokens: Tensor) -> Tensor:
        """tokens [B,L] -> bool [B,L], True where attended. Token 0 always is, so that an empty text has a state."""
        mask = tokens != self.pad_token
        mask[:, 0] = True
        return mask

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens [B,L] integer, mask as `mask` gives it -> [B,L,width]. ValueError when L exceeds `max_tokens`."""
        if tokens.shape[1] > self.max_tokens:
            raise ValueError(
                f"the text encoder was built for {self.max_tokens} tokens, the batch has {tokens.shape[1]}; "
                f"set data.max_tokens: {self.max_tokens}"
            )
        mask = self.mask(tokens) if mask is None else mask
        output = self.net(input_ids=tokens, attention_mask=mask.long())
        return cast(Tensor, output.last_hidden_state)


def build_text_encoder(config: EncoderConfig, spec: DataSpec) -> TextEncoder:
    """The encoder that `config` names, for the tokens of `spec`.

    name: a transformers model type (``bert``), or a folder or hub id whose architecture is then taken.
    pretrained: a folder with ``config.json`` and ``model.safetensors``, or a hub id; loading is strict, except that a
    smaller ``num_hidden_layers`` in the options keeps the first layers only (FedDRA: BERT's first 6).
    The position table of a new network is just as long as the texts of `spec`.

    Raises ValueError for unknown names and options, a vocabulary or padding token other than the packed one, texts
    longer than the network's positions, weights that do not fit, and networks that are no encoders.
    """
    if spec.vocab_size == 0:
        raise ValueError("model.text is set, but the packed set has no text; pack it, or remove the encoder")
    taken = sorted(set(FROM_DATA) & config.options.keys())
    if taken:
        raise ValueError(f"model.text.options: {', '.join(taken)} is taken from the packed set; remove it")
    settings = _settings(config, spec)
    try:
        net = _weights(config, settings)
        _check_padding(net, settings.model_type, spec)
        return TextEncoder(net, spec, freeze=config.freeze)
    except OSError as error:
        raise _unreadable(config.pretrained or config.name, error) from error
    except (TypeError, RuntimeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(
            f"model.text: {config.pretrained or config.name} cannot be used: {error}; choose an encoder "
            f"(bert, roberta, distilbert, ...), weights and options that fit"
        ) from error


def _settings(config: EncoderConfig, spec: DataSpec) -> Any:
    """The transformers config, agreeing with the packed set."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    source = config.pretrained or (config.name if _is_location(config.name) else None)
    if source is None:
        if config.name not in CONFIG_MAPPING:
            close = difflib.get_close_matches(config.name, list(CONFIG_MAPPING.keys()), n=3)
            hint = f"did you mean {', '.join(close)}?" if close else "for example bert, roberta, distilbert"
            raise ValueError(f"model.text.name: transformers has no model type {config.name}; {hint}")
        base = CONFIG_MAPPING[config.name]()
    else:
        try:
            base = AutoConfig.from_pretrained(_local(source))
        except OSError as error:
            raise _unreadable(source, error) from error
    if not _is_location(config.name) and base.model_type != config.name:
        raise ValueError(
            f"model.text.name: {config.name}, but pretrained: {source} holds a {base.model_type}; "
            f"set name: {base.model_type}"
        )
    unknown = [key for key in config.options if not hasattr(base, key)]
    if unknown:
        close = difflib.get_close_matches(unknown[0], list(base.to_dict()), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ValueError(f"model.text.options: {base.model_type} has no {', '.join(unknown)}{hint}")
    needed = spec.max_tokens + (spec.pad_token + 1 if base.model_type in OFFSET_POSITIONS else 0)
    chosen: dict[str, Any] = dict(config.options)
    if config.pretrained is None:
        chosen |= {"vocab_size": spec.vocab_size, "pad_token_id": spec.pad_token}
        if hasattr(base, "max_position_embeddings"):
            chosen.setdefault("max_position_embeddings", needed)
    else:
        _check_vocabulary(config.pretrained, base, spec)
    try:
        settings = type(base).from_dict({**base.to_dict(), **_canonical(base, chosen)})
    except Exception as error:  # huggingface_hub's own validation error has no stable base class
        raise ValueError(f"model.text.options: {base.model_type} refuses {config.options}: {error}") from error
    have = getattr(settings, "max_position_embeddings", None)
    if have is not None and have < needed:
        raise ValueError(
            f"model.text: {base.model_type} has max_position_embeddings: {have}, texts of {spec.max_tokens} tokens "
            f"need {needed}; set data.max_tokens: {have - needed + spec.max_tokens}, or options.max_position_embeddings"
        )
    return settings


def _canonical(base: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Names that the config itself uses: DistilBERT stores `hidden_size` as `dim`."""
    aliases = getattr(base, "attribute_map", {})
    return {aliases.get(key, key): value for key, value in options.items()}


def _check_vocabulary(source: str, settings: Any, spec: DataSpec) -> None:
    spare = settings.vocab_size - spec.vocab_size
    if not 0 <= spare < MAX_PADDING_ROWS:
        raise ValueError(
            f"model.text.pretrained: {source} has a vocabulary of {settings.vocab_size}, the packed set one of "
            f"{spec.vocab_size}; pack the set with --tokenizer {source}"
        )
    if settings.pad_token_id not in (None, spec.pad_token):
        raise ValueError(
            f"model.text.pretrained: {source} pads with token {settings.pad_token_id}, the packed set with "
            f"{spec.pad_token}; pack the set with --tokenizer {source}"
        )


def _check_padding(net: nn.Module, model_type: str, spec: DataSpec) -> None:
    """MPNet's padding token is 1 whatever its config says; its positions would be wrong with another."""
    fixed = getattr(cast(Any, net).get_input_embeddings(), "padding_idx", None)
    if fixed not in (None, spec.pad_token):
        raise ValueError(f"{model_type} pads with token {fixed}, the packed set with {spec.pad_token}")


def _weights(config: EncoderConfig, settings: Any) -> nn.Module:
    from transformers.models.auto.modeling_auto import AutoModel

    if config.pretrained is None:
        if _is_location(config.name):
            logger.warning("model.text: only the architecture of %s; set pretrained to load weights", config.name)
        return cast(nn.Module, AutoModel.from_config(settings, dtype=torch.float32))
    net, info = AutoModel.from_pretrained(
        _local(config.pretrained),
        config=settings,
        dtype=torch.float32,
        use_safetensors=True,  # pickles are not read
        output_loading_info=True,
    )
    # A pooler is dropped anyway, and weights saved from a masked language model have none.
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"its weights lack {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}")
    return cast(nn.Module, net)


def _local(source: str) -> str:
    """The folder, with ~ expanded, or the hub id."""
    path = Path(source).expanduser()
    if _is_path(source) and not path.is_dir():
        raise ValueError(
            f"model.text: {source} is no folder; give one with config.json and model.safetensors, or a hub id"
        )
    return str(path) if path.is_dir() else source


def _unreadable(source: str, error: OSError) -> ValueError:
    lacking = "" if Path(source).expanduser().is_dir() else f", and there is no folder {source} here"
    return ValueError(
        f"model.text: cannot load {source}{lacking}: {error}; give a folder with config.json and "
        "model.safetensors, or - on a machine with network - a hub id"
    )


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~"))


def _is_location(text: str) -> bool:
    """A folder or hub id rather than a model type."""
    return _is_path(text) or "/" in text or Path(text).is_dir()

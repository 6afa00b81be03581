"""Names of a model's blocks, and what can be said of `aggregation.local_blocks` before the model is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch

from fedhpc.config.fields import closest
from fedhpc.config.objectives import SiglipConfig
from fedhpc.config.schema import ClassifierConfig, EncoderConfig, FusionConfig, JointConfig, Model, RunConfig

# Words that aggregation.local_blocks may use in place of patterns.
NORM_WORDS = ("batch_norm", "norm")
CNNS = ("cnn", "cnn_tiny")  # networks of our own, without normalisation layers
OWN_NETWORKS = (*CNNS, "resnet10", "resnet12", "shufflenet", "mobilenetv2")  # built here, for small pictures


def encoders(model: Model) -> dict[str, EncoderConfig]:
    """Dotted key below `model` -> encoder."""
    if isinstance(model, JointConfig):
        return {name: getattr(model, name) for name in model.modalities}
    if not isinstance(model, ClassifierConfig):
        return {key: one for key, one in (("image", model.image), ("text", model.text)) if one is not None}
    if model.image is not None:
        return {"image": model.image}
    return {f"networks[{item}]": encoder for item, encoder in enumerate(model.encoders)}


def block_prefixes(model: Model) -> dict[str, tuple[str, ...]]:
    """Name of each block -> how the names of its tensors begin."""
    if isinstance(model, ClassifierConfig):
        return {"encoder/image": ("encoder.", "embed."), "head/image": ("head.",)}
    if isinstance(model, FusionConfig):  # heads and probes of it depend on who holds what
        return {f"encoder/{m}": (f"encoders.{m}.",) for m in model.modalities}
    prefixes: dict[str, tuple[str, ...]] = {}
    if isinstance(model, JointConfig):
        for modality in model.modalities:
            prefixes[f"encoder/{modality}"] = (f"{modality}_encoder.",)
            prefixes[f"head/{modality}"] = (f"{modality}_project.",)
        if len(model.modalities) == 2:
            prefixes["joint"] = ("joint.", "joint_head.", "patches.")
        return prefixes | {"embed": ("embed.",), "classifier": ("classifier.",)}
    for modality in ("image", "text"):
        prefixes[f"encoder/{modality}"] = (f"{modality}_encoder.",)
        if model.align:
            prefixes[f"align/{modality}"] = (f"{modality}_align.",)
        prefixes[f"head/{modality}"] = (f"{modality}_head.", f"{modality}_local.")
    prefixes["temperature"] = ("log_temperature", "logit_bias")
    return prefixes


def trained_blocks(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """Those of `block_prefixes` that have anything to train, and so to exchange."""
    model, objective = config.model, config.objective
    blocks = block_prefixes(model)
    if isinstance(model, FusionConfig):
        return blocks
    if isinstance(model, JointConfig):
        return {name: p for name, p in blocks.items() if name not in [f"encoder/{m}" for m in _still(model)]}
    if isinstance(model, ClassifierConfig):
        if all(encoder.freeze for encoder in model.encoders) and model.embed_dim is None:
            blocks.pop("encoder/image")
    else:
        if model.image.freeze:
            blocks.pop("encoder/image")
        if model.text.freeze:
            blocks.pop("encoder/text")
        if not (model.learn_temperature or isinstance(objective, SiglipConfig)):
            blocks.pop("temperature")
    return blocks


def _still(model: JointConfig) -> list[str]:
    """Modalities whose encoder is frozen."""
    return [name for name in model.modalities if getattr(model, name).freeze]


def unmatched_local_blocks(config: RunConfig) -> Iterator[str]:
    """A line for each entry of `aggregation.local_blocks` that cannot match anything, whatever the encoders are."""
    if isinstance(config.model, FusionConfig):
        return
    blocks, model = trained_blocks(config), config.model
    names = [encoder.name for encoder in model.encoders] if isinstance(model, ClassifierConfig) else []
    for pattern in config.aggregation.local_blocks:
        if pattern in NORM_WORDS:
            if names and all(name in CNNS for name in names):
                which = f"model.image.name = {names[0]}" if model.image is not None else f"model.networks: {names}"
                yield f"aggregation.local_blocks: {pattern}, but {which} has no such layer; remove it"
        elif not _may_match(pattern, blocks):
            idle = sorted(set(block_prefixes(config.model)) - set(blocks))
            meant = closest(pattern, [*NORM_WORDS, *blocks])
            yield (
                f"aggregation.local_blocks: {pattern} matches no tensor and no block{_hint(meant)}; blocks are "
                f"{', '.join(blocks)}{_not_trained(idle)}, names of tensors begin with "
                f"{', '.join(prefix for some in blocks.values() for prefix in some)}, and {' and '.join(NORM_WORDS)} "
                "stand for all layers of that kind"
            )


def open_local_blocks(config: RunConfig) -> list[str]:
    """Entries that only the built model can tell of."""
    blocks = trained_blocks(config)
    sure = {"norm"} | ({"batch_norm"} if getattr(config.model, "head_norm", "") == "batch" else set())
    local = config.aggregation.local_blocks
    return [pattern for pattern in local if pattern not in sure and not any(fnmatch(b, pattern) for b in blocks)]


def _may_match(pattern: str, blocks: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a shell pattern matches a block, or could match a tensor of one: names of tensors have no slash."""
    if any(fnmatch(block, pattern) for block in blocks):
        return True
    fixed = min((pattern.index(sign) for sign in "*?[" if sign in pattern), default=len(pattern))
    start, whole = pattern[:fixed], fixed == len(pattern)
    if "/" in start:
        return False
    prefixes = [prefix for some in blocks.values() for prefix in some]
    return any(start.startswith(prefix) or (not whole and prefix.startswith(start)) for prefix in prefixes)


def _hint(meant: str | None) -> str:
    return f"; did you mean {meant}?" if meant else ""


def _not_trained(idle: list[str]) -> str:
    return f" ({', '.join(idle)} {'has' if len(idle) == 1 else 'have'} nothing to train)" if idle else ""

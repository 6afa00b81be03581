"""Keys of classifiers over several modalities that fight each other, or have no effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fedhpc.config.algorithms import (
    OVER_MODALITIES,
    POOLED,
    FedDRAConfig,
    LocalConfig,
    MoonConfig,
    ScaffoldConfig,
)
from fedhpc.config.blending import DgbPcwConfig
from fedhpc.config.fusion import FusionConfig

if TYPE_CHECKING:
    from fedhpc.config.schema import RunConfig

Add = Callable[[str, str, str], None]


def check_fusion(config: RunConfig) -> Iterator[str]:
    """Problems, one line each."""
    model, algorithm = config.model, config.algorithm
    if not isinstance(model, FusionConfig):
        if isinstance(algorithm, OVER_MODALITIES):
            yield (
                f"algorithm.name = {algorithm.name} but model.kind = {model.kind}: it blends modalities; set "
                "model.kind: fusion, or another algorithm"
            )
        return
    if isinstance(algorithm, ScaffoldConfig | MoonConfig | FedDRAConfig):
        yield (
            f"algorithm.name = {algorithm.name} but model.kind = fusion, whose clients own different blocks; set "
            "fedavg, fedprox, fedopt, dgb_pcw, hgb, local, centralised or gblend"
        )
    if isinstance(algorithm, OVER_MODALITIES) and len(model.modalities) == 1:
        yield (
            f"algorithm.name = {algorithm.name} but the model has one modality, {model.modalities[0]}: nothing "
            "to blend; add a modality, or set algorithm.name: fedavg"
        )
    if isinstance(algorithm, OVER_MODALITIES) and model.missing == "zeros":
        yield (
            f"algorithm.name = {algorithm.name} but model.missing = zeros, where there are no combinations to compare; "
            "set missing: heads, or algorithm.name: fedavg for zero-filling"
        )
    if config.data.corrupt_text and not model.reads_text:
        share = config.data.corrupt_text
        yield f"data.corrupt_text = {share:g} but the model reads no text; remove it, or add model.text"
    held = config.modalities.of_client
    unknown = sorted({name for client in held or () for name in client} - set(model.modalities))
    if unknown:
        yield (
            f"modalities.of_client names {', '.join(unknown)}; the model's modalities are {', '.join(model.modalities)}"
        )
    preset, needed = config.modalities.preset, {"bi_modal": 2, "tri_modal": 3}
    if len(model.modalities) < needed.get(preset, 1):
        yield (
            f"modalities.preset = {preset} but the model has {len(model.modalities)} modalities "
            f"({', '.join(model.modalities)}); add modalities, or choose another preset"
        )
    clients = getattr(config.partition, "num_clients", None)
    if held is not None and clients is not None and clients != len(held):
        yield (
            f"modalities.of_client has {len(held)} entries but partition.num_clients = {clients}; give one entry "
            "a client"
        )
    owners, masked = config.modalities.min_contributors, config.aggregation.min_contributors
    if config.aggregation.secure and owners is not None and owners < masked:
        yield (
            f"modalities.min_contributors = {owners} but aggregation.secure = true refuses sums over fewer than "
            f"aggregation.min_contributors = {masked}; set it to {masked} or more, or leave it out"
        )
    if isinstance(algorithm, DgbPcwConfig) and algorithm.rates == "static":
        yield from _static_rates(algorithm, model)


def _static_rates(algorithm: DgbPcwConfig, model: FusionConfig) -> Iterator[str]:
    encoders = [f"encoder/{name}" for name in model.modalities]
    wrong = [name for name in algorithm.static_rates if name not in encoders and not name.startswith("head/")]
    if wrong:
        yield (
            f"algorithm.static_rates names {', '.join(wrong)}; blocks are {', '.join(encoders)}, and head/... with "
            "modalities joined by +"
        )


def idle_in_fusion(config: RunConfig, add: Add) -> None:
    """Calls add(section, keys, why) for keys without effect."""
    model, algorithm = config.model, config.algorithm
    if not isinstance(model, FusionConfig):
        why = f"with model.kind: {model.kind}, whose clients hold the same modalities"
        add("modalities", "preset of_client min_contributors small", why)
        add("data", "corrupt_text", f"with model.kind: {model.kind}")
        add("evaluation", "num_resamples", f"with model.kind: {model.kind}")
        return
    add("evaluation", "match", "with model.kind: fusion, which retrieves nothing")
    if model.text is None:
        add("data", "max_tokens", "without model.text")
    if len(model.modalities) == 1:
        add("model", "modality_dropout", "with one modality")
    if config.modalities.of_client is not None:
        add("modalities", "preset", "with modalities.of_client")
    if isinstance(algorithm, (LocalConfig, *POOLED)):
        add("modalities", "min_contributors", f"with algorithm.name: {algorithm.name}, where nothing is summed")
    if config.fewest_owners is None or isinstance(algorithm, (LocalConfig, *POOLED)):
        add("modalities", "small", "without modalities.min_contributors")
    if isinstance(algorithm, DgbPcwConfig):
        _idle_in_dgb(algorithm, add)


def _idle_in_dgb(algorithm: DgbPcwConfig, add: Add) -> None:
    if algorithm.variant != "normalized":
        add("algorithm", "clip", f"with variant: {algorithm.variant}")
    if algorithm.rates == "static":
        keys = "variant similarity start_round epsilon winsorise ema loss_ema generalisation clip"
        keys += "" if algorithm.probes == "heads" else " probes"
        add("algorithm", keys, "with rates: static, which follow no losses")
    else:
        add("algorithm", "static_rates", f"with rates: {algorithm.rates}")

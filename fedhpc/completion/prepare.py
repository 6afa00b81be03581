"""From a packed file, and what is missing in it, to what a joint model trains on: frozen features, completed rows."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import h5py
import numpy as np
import torch
from torch import Tensor

from fedhpc.client.client import derived_seed
from fedhpc.completion.features import (
    COLUMN_OF,
    PART,
    FeatureFile,
    ensure_features,
    features_key,
    features_of,
    sidecar_path,
)
from fedhpc.completion.generator import generate
from fedhpc.completion.made import ensure_made, read_made
from fedhpc.completion.neighbour import nearest, nearest_of_class
from fedhpc.completion.parts import Part, Ranks, in_parts
from fedhpc.completion.reader import BOTH, JointReader, Made
from fedhpc.config.completion import GeneratorConfig, NeighbourConfig, PretrainedConfig
from fedhpc.config.joint import JointConfig
from fedhpc.config.schema import RunConfig
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.missing import refuse_empty
from fedhpc.data.partition import ClientRows
from fedhpc.data.select import label_column
from fedhpc.interfaces import DataSpec
from fedhpc.models.joint import JointModel
from fedhpc.models.zoo import build_model

logger = logging.getLogger(__name__)

Array = np.ndarray
OTHER = {"image": "text", "text": "image"}


@dataclass(frozen=True)
class Prepared:
    """What batches are made from.

    Attributes:
        clients: with the training rows that are used.
        reader: of columns.
        columns: batch name -> column.
        given: "has_image", "has_text" bool [rows of the file], of a model that reads both; with model.hide_completed
            "made_image", "made_text", which of it only stands in.
        completed: by modality, rows that something stands in for.
    """

    clients: list[ClientRows]
    reader: JointReader
    columns: dict[str, str]
    given: dict[str, Tensor]
    completed: Mapping[str, Array]


def build_joint(config: RunConfig, spec: DataSpec) -> JointModel:
    """The run's model with its first weights; those of frozen encoders never change."""
    torch.manual_seed(derived_seed(config.random_seed, "model"))
    model = build_model(config.model, spec, config.objective)
    assert isinstance(model, JointModel)
    return model


def prepare(
    config: RunConfig,
    packed: PackedFile,
    spec: DataSpec,
    dealt: Sequence[ClientRows],
    lost: Mapping[str, Array],
    device: torch.device,
    ranks: Ranks,
    generates: bool = False,
) -> Prepared:
    """Every rank calls this.

    dealt: the clients' rows, those without everything included. lost: by modality, rows that lose it on purpose.

    Raises:
        ValueError: a client has no training row left, or a sidecar is to be made by `fedhpc complete` first.
    """
    model = config.model
    assert isinstance(model, JointConfig)
    has = {name: packed.read(f"present/{name}").astype(bool) for name in model.modalities}
    for name, rows in lost.items():
        if name in has:
            has[name][rows] = False
    features, made = None, {}
    if model.cache:
        built = build_joint(config, spec)
        features = ensure_features(built, packed, config, device, ranks)
        if config.completion is not None:
            made = complete(config, packed, built, features, dealt, has, device, ranks, generates)
    for name, one in made.items():
        has[name][one.rows] = True
    enough = np.any if model.missing == "zeros" else np.all
    usable = enough([has[name] for name in model.modalities], axis=0)
    clients = [replace(client, train=client.train[usable[client.train]]) for client in dealt]
    refuse_empty(config, dealt, clients)
    columns = {"label": f"label/{label_column(packed, config)}"}
    for name in model.modalities:
        raw = "image" if name == "image" else "tokens"
        columns |= {column: column for column in (COLUMN_OF[name] if model.cache else (raw,))}
    if len(model.modalities) == 2 and model.pictures == "patches":
        columns["image"] = "image"
    given = {f"has_{name}": torch.from_numpy(has[name]) for name in has} if len(has) == 2 else {}
    if model.hide_completed:
        for name, one in made.items():
            given[f"made_{name}"] = torch.zeros(packed.num_rows, dtype=torch.bool)
            given[f"made_{name}"][torch.from_numpy(one.rows)] = True
    columns |= {name: name for name in given}
    return Prepared(
        clients,
        JointReader(packed, features, has, made),
        columns,
        given,
        {name: one.rows for name, one in made.items()},
    )


# ----------------------------------------------------------------------------------------------------- completed rows
def complete(
    config: RunConfig,
    packed: PackedFile,
    model: JointModel,
    features: FeatureFile,
    dealt: Sequence[ClientRows],
    has: Mapping[str, Array],
    device: torch.device,
    ranks: Ranks,
    generates: bool = False,
) -> dict[str, Made]:
    """What stands in for each modality of the training rows that lack it. Every rank calls this.

    generates: run generative models where their sidecar is not there; else it is a ValueError that says how.
    """
    method = config.completion
    assert method is not None
    told = {"method": method.model_dump(mode="json"), "seed": config.random_seed}
    if isinstance(method, PretrainedConfig):
        return _by_models(config, method, packed, model, dealt, has, device, ranks, generates)
    told["features"] = features_key(model, packed, config, device)
    label = None
    if isinstance(method, NeighbourConfig) and method.same_label:
        told["label"] = label_column(packed, config)
        label = packed.read(f"label/{told['label']}")
    path = sidecar_path(packed, config, "completed", rows_key(told, dealt, has))

    def make(place: int) -> Part:
        client = dealt[place]
        arrays: dict[str, Array] = {}
        for name in BOTH:
            of_client = _client_completed(config, method, features, client, has, name, label)
            arrays |= {f"{name}.{key}": value for key, value in of_client.items()}
        return arrays

    names = [f"client-{client.id:06d}" for client in dealt]
    attributes = {"fedhpc_completion": 1, "checksum": packed.checksum, "method": json.dumps(told)}
    in_parts(path, names, make, ranks, attributes, what=f"completion by {method.method}", unit="clients")
    for client in dealt:
        _tell(client, has)
    return read_made(path)


def _by_models(
    config: RunConfig,
    method: PretrainedConfig,
    packed: PackedFile,
    model: JointModel,
    dealt: Sequence[ClientRows],
    has: Mapping[str, Array],
    device: torch.device,
    ranks: Ranks,
    generates: bool,
) -> dict[str, Made]:
    """What generative models made, with its features: other frozen encoders need no new captions or pictures."""
    told = {"method": method.model_dump(mode="json"), "seed": config.random_seed, "data": packed.checksum}
    path = sidecar_path(packed, config, "completed", rows_key(told, dealt, has))
    if not path.is_file() and not generates:
        raise ValueError(
            f"completion.method: pretrained, but {path} is not there; make it first with `fedhpc complete "
            f"{packed.path} --config` and this config"
        )
    lack = {name: np.sort(np.concatenate([lacking(client, has, name) for client in dealt])) for name in BOTH}
    ensure_made(path, config, method, packed, lack, device, ranks)
    raw = read_made(path)
    made = {}
    for name, one in raw.items():
        column = "image" if name == "image" else "tokens"
        target = path.with_name(f"{path.stem}.{name}-features-{features_key(model, packed, config, device)}.h5")
        starts = range(0, len(one.rows), PART)

        def make(
            number: int, starts: range = starts, values: Array = one.columns[column], column: str = column
        ) -> Part:
            part = values[starts[number] : starts[number] + PART]
            return features_of(model, config, {column: part}, device)

        in_parts(target, [f"{number:06d}" for number in range(len(starts))], make, ranks, {})
        with h5py.File(target, "r", locking=False) as file:
            columns = {key: file[key][()] for key in file}
        made[name] = Made(one.rows, None, {**one.columns, **columns})
    return made


def rows_key(told: object, dealt: Sequence[ClientRows], has: Mapping[str, Array]) -> str:
    """12 hex digits of what is told, and of who lacks what."""
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for client in dealt:
        digest.update(np.asarray([client.id, len(client.train)], np.int64).tobytes() + client.train.tobytes())
        for name in BOTH:
            digest.update(has[name][client.train].tobytes())
    return digest.hexdigest()[:12]


def lacking(client: ClientRows, has: Mapping[str, Array], name: str) -> Array:
    """Training rows of a client that lack one modality and have the other."""
    return client.train[~has[name][client.train] & has[OTHER[name]][client.train]]


def pairs_of(client: ClientRows, has: Mapping[str, Array]) -> Array:
    """Training rows of a client that have both."""
    return client.train[has["image"][client.train] & has["text"][client.train]]


def _client_completed(
    config: RunConfig,
    method: NeighbourConfig | GeneratorConfig,
    features: FeatureFile,
    client: ClientRows,
    has: Mapping[str, Array],
    name: str,
    label: Array | None,
) -> dict[str, Array]:
    """label: [rows of the file], where only rows of one class lend to each other."""
    rows, pairs, other = lacking(client, has, name), pairs_of(client, has), OTHER[name]
    if not len(rows) or len(pairs) < (method.fewest_pairs if isinstance(method, GeneratorConfig) else 1):
        return {}
    condition, query = (
        torch.from_numpy(features.read(f"{other}_tokens", some)[:, 0].copy()).float() for some in (pairs, rows)
    )
    if isinstance(method, NeighbourConfig):
        if label is None:
            return {"row": rows, "donor": pairs[nearest(query, condition).numpy()]}
        classes, pair_classes = (torch.from_numpy(label[some]) for some in (rows, pairs))
        place = nearest_of_class(query, condition, classes, pair_classes).numpy()
        return {"row": rows[place >= 0], "donor": pairs[place[place >= 0]]}
    target = torch.from_numpy(features.read(f"{name}_tokens", pairs)).float()
    mask = torch.ones(target.shape[:2], dtype=torch.bool)
    if name == "text":
        mask = torch.from_numpy(features.read("text_mask", pairs))
    seed = derived_seed(config.random_seed, "generator", client.id, name)
    made = generate(method, condition, target, mask, query, seed).numpy()
    columns = {f"{name}_tokens": made}
    if name == "text":  # as long as the client's texts are in the middle
        length = int(mask.sum(dim=1).float().median())
        columns["text_mask"] = np.broadcast_to(np.arange(made.shape[1]) < length, made.shape[:2]).copy()
    return {"row": rows, **columns}


def _tell(client: ClientRows, has: Mapping[str, Array]) -> None:
    if len(client.train) and not len(pairs_of(client, has)):
        logger.warning(
            "client %d (%s) has no training row with picture and text, so nothing completes its %d rows",
            client.id, client.site, len(client.train),
        )  # fmt: skip

"""What is in a packed file, and what each client would hold: tables for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedhpc.config.schema import RunConfig
from fedhpc.data.hdf5 import SPLITS, PackedFile
from fedhpc.data.partition import ClientRows

_MOST_CLASSES = 12  # further classes of a column are summed up
_MOST_CLIENTS = 100


def describe(path: Path | str, config: RunConfig | None = None, *, verify: bool = False) -> Group:
    """Renderables for a rich Console: header, rows by split and site, label and modality; with a config, what each
    client of that run would hold, of the rows that its model can use.

    verify: also recompute the checksum (reads the whole file). Raises what PackedFile, `verify`, `client_rows` raise.
    """
    with PackedFile(path) as packed:
        if verify:
            packed.verify()
        parts: list[RenderableType] = [_header(packed, verify)]
        split = packed.read("split")
        parts.append(_by_site(packed, split))
        parts.append(_by_modality(packed, split))
        if packed.label_classes:
            parts.append(_by_label(packed, split))
        if config is not None:
            from fedhpc.data.select import client_rows  # knows models' needs, and imports torch with them

            parts.append(_clients(packed, client_rows(packed, config), getattr(config.partition, "label", None)))
        return Group(*parts)


def _header(packed: PackedFile, verified: bool) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    shape, size = packed.image_shape, packed.path.stat().st_size
    lines = [
        ("file", f"{packed.path} ({size / 2**20:.1f} MiB)"),
        ("name", packed.name),
        ("source", packed.source),
        ("licence", packed.licence),
        ("created", packed.created + (f" by {packed.command}" if packed.command else "")),
        ("checksum", packed.checksum + (" (verified)" if verified else "")),
        (
            "rows",
            f"{packed.num_rows} of {len(np.unique(packed.patients()))} patients at {len(packed.site_names)} sites",
        ),
    ]
    if shared := _at_several_sites(packed):
        lines.append(
            (
                "WARNING",
                f"{shared} patients have rows at several sites. Where numbers begin anew at each site they are other "
                "people: put the site before the number (A-17) and pack again",
            )
        )
    if shape:
        lines.append(("pictures", f"{shape[0]}x{shape[1]} px, {'grey' if shape[2] == 1 else 'RGB'}"))
    if packed.max_tokens:
        lines.append(("tokens", f"{packed.max_tokens} a row, vocabulary of {packed.vocab_size}"))
    if packed.caption_offsets is not None:
        counts = np.diff(packed.caption_offsets)
        lines.append(("captions", f"{counts.min()} to {counts.max()} a row, {counts.sum()} in all"))
    if packed.note:
        lines.append(("note", packed.note))
    if packed.generated:
        lines.append(("GENERATED", "made by a program: not real data"))
    for key, value in lines:
        table.add_row(Text(key, style="bold red" if key in ("GENERATED", "WARNING") else "bold"), Text(value))
    return table


def _at_several_sites(packed: PackedFile) -> int:
    """Patients with rows at more than one site."""
    patients, site = packed.patients(), packed.read("site")
    pairs = np.unique(np.stack([np.unique(patients, return_inverse=True)[1], site]), axis=1)
    return int((np.bincount(pairs[0]) > 1).sum())


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", overflow="fold")
    return table


def _counts(split: np.ndarray, rows: np.ndarray) -> list[str]:
    """Rows in train, val, test and in all."""
    counts = np.bincount(split[rows], minlength=len(SPLITS))
    return [*(str(n) for n in counts), str(int(counts.sum()))]


def _by_site(packed: PackedFile, split: np.ndarray) -> Table:
    table = _table("Rows by site", "site", *SPLITS, "all")
    site = packed.read("site")
    for code, name in enumerate(packed.site_names):
        table.add_row(Text(name), *_counts(split, site == code))
    table.add_section()
    table.add_row("all", *_counts(split, np.ones(len(split), bool)))
    return table


def _by_modality(packed: PackedFile, split: np.ndarray) -> Table:
    table = _table("Rows by modality", "modality", *SPLITS, "all", "MiB decoded")
    for modality in packed.modalities:
        column = "tokens" if modality == "text" else modality
        size = packed.decoded_bytes(column) / 2**20
        table.add_row(modality, *_counts(split, packed.read(f"present/{modality}")), f"{size:.1f}")
    if "mask" in packed.columns:
        size = packed.decoded_bytes("mask") / 2**20
        table.add_row("mask", *_counts(split, packed.read("mask_row") >= 0), f"{size:.1f}")
    return table


def _by_label(packed: PackedFile, split: np.ndarray) -> Table:
    table = _table("Rows by label", "label", "class", *SPLITS, "all", left=2)
    for name, classes in packed.label_classes.items():
        codes = packed.read(f"label/{name}")
        total = np.bincount(codes[codes >= 0], minlength=len(classes))
        shown = sorted(np.argsort(-total, kind="stable")[:_MOST_CLASSES].tolist())
        for code in shown:
            table.add_row(Text(name), Text(classes[code]), *_counts(split, codes == code))
        rest = (codes >= 0) & ~np.isin(codes, shown)
        if rest.any():
            table.add_row(Text(name), f"({len(classes) - len(shown)} more classes)", *_counts(split, rest))
        if (codes < 0).any():
            table.add_row(Text(name), "(missing)", *_counts(split, codes < 0))
        table.add_section()
    return table


def _clients(packed: PackedFile, clients: list[ClientRows], label: str | None) -> Table:
    """Rows of every client, and how its training rows spread over one label column."""
    classes = packed.label_classes
    label = label if label is not None else next(iter(classes), None)
    title = f"{len(clients)} clients" + (f"; training rows by {label}" if label else "")
    table = _table(title, "client", "site", *SPLITS, "all", *([label] if label else []), left=2)
    codes = packed.read(f"label/{label}") if label else None
    for client in clients[:_MOST_CLIENTS]:
        rows = [client.train, client.val, client.test]
        cells = [str(client.id), client.site, *(str(len(part)) for part in rows), str(client.num_rows)]
        if codes is not None and label is not None:
            held = codes[client.train]
            counts = np.bincount(held[held >= 0], minlength=len(classes[label]))
            largest = np.argsort(-counts, kind="stable")[:_MOST_CLASSES]
            text = ", ".join(f"{classes[label][k]} {counts[k]}" for k in largest if counts[k])
            missing = int((held < 0).sum())
            cells.append(text + (f", missing {missing}" if missing else ""))
        table.add_row(*(Text(cell) for cell in cells))
    if len(clients) > _MOST_CLIENTS:
        table.add_row("...", f"({len(clients) - _MOST_CLIENTS} more)")
    return table

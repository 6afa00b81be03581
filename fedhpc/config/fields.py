"""What the schema knows of itself: sections, variants and the words that describe a field."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from fedhpc.config.section import Section

SectionType = type[Section]


def variants(field: FieldInfo) -> dict[str, SectionType]:
    """The sections that a discriminated field may be, by tag; empty for any other field."""
    key = field.discriminator
    if not isinstance(key, str):
        return {}
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    return {tag: kind for kind in kinds for tag in get_args(kind.model_fields[key].annotation)}


def section_of(field: FieldInfo) -> SectionType | None:
    """The section type of a plain (perhaps optional) section field."""
    if get_origin(field.annotation) is dict:  # see entry_of
        return None
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section) and field.discriminator is None:
            return kind
    return None


def entry_of(field: FieldInfo) -> SectionType | None:
    """The section type of a field that maps names to sections."""
    arguments = get_args(field.annotation)
    if get_origin(field.annotation) is dict and isinstance(arguments[1], type) and issubclass(arguments[1], Section):
        return arguments[1]
    return None


def locate(root: SectionType, loc: Sequence[int | str]) -> tuple[tuple[str, ...], SectionType | None, FieldInfo | None]:
    """What a pydantic error location means.

    Returns the path as the user wrote it (without union tags), the section that holds its last key (None inside free
    values), and the field of that key (None when the section has no such key).
    """
    path: list[str] = []
    holder: SectionType | None = None
    field: FieldInfo | None = None
    inside: SectionType | None = root  # the section that the next key belongs to
    tags: dict[str, SectionType] = {}
    entry: SectionType | None = None  # sections by names that the user chooses
    for part in loc:
        if part in tags:
            inside, tags = tags[str(part)], {}
            continue
        if part == "[key]" or (inside is None and isinstance(part, int)):
            continue  # the items of a list are judged, and replaced, as a whole
        path.append(str(part))
        if entry is not None:  # a name that the user chose
            inside, entry = entry, None
            continue
        if inside is None:  # a key of free options
            holder = None
            continue
        holder, field = inside, inside.model_fields.get(str(part))
        tags = variants(field) if field else {}
        inside = section_of(field) if field else None
        entry = entry_of(field) if field else None
    return tuple(path), holder, field


def keys_everywhere(section: SectionType, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, dotted path of the section that has it) over the whole schema; variants carry `(name: fedprox)`."""
    for key, field in section.model_fields.items():
        yield key, prefix
        path = f"{prefix}.{key}" if prefix else key
        if (inner := entry_of(field)) is not None:
            yield from keys_everywhere(inner, f"{path}.NAME")
        if (inner := section_of(field)) is not None:
            yield from keys_everywhere(inner, path)
        for tag, variant in variants(field).items():
            yield from keys_everywhere(variant, f"{path} ({field.discriminator}: {tag})")


def describe(field: FieldInfo) -> str:
    """What a field wants, in words: "an integer >= 1", "one of sgd, adam, adamw"."""
    if tags := variants(field):
        return f"a section with {field.discriminator}: one of {', '.join(tags)}"
    bounds = []
    for limit in field.metadata:
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if (value := getattr(limit, name, None)) is not None:
                bounds.append(f"{sign} {value}")
        if pattern := getattr(limit, "pattern", None):
            bounds.append(f"of the form {pattern}")
    return " ".join([_kind(field.annotation), " and ".join(bounds)]).strip()


def _kind(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(str(arg) for arg in args)}" if len(args) > 1 else str(args[0])
    if origin is tuple and args[-1] is not Ellipsis:
        return f"a list of {len(args)} values, each {_kind(args[0])}"
    if origin in (tuple, list):
        return f"a list, each item {_kind(args[0])}"
    if origin is dict:
        return "a section of free keys"
    if NoneType in args:
        return f"{_kind(next(arg for arg in args if arg is not NoneType))} or null"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"a section with keys {', '.join(annotation.model_fields)}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return names.get(annotation, "a value")


def closest(word: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that `word` was probably meant to be."""
    spelt = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(str(word).lower(), list(spelt), n=1, cutoff=cutoff)
    return spelt[matches[0]] if matches else None


def shown(value: Any) -> str:
    """A value as it would stand in YAML, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def value_at(data: Any, path: Iterable[str]) -> Any:
    """The raw value at a path; None where there is nothing."""
    for part in path:
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list) and part.isdigit() and int(part) < len(data):
            data = data[int(part)]
        else:
            return None
    return data

"""From pydantic's errors to lines that say what was given, what is wrong with it and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedhpc.config.fields import (
    SectionType,
    closest,
    describe,
    keys_everywhere,
    locate,
    section_of,
    shown,
    value_at,
    variants,
)
from fedhpc.config.yaml_text import render

_BOOLEANS = "YAML reads yes, no, on and off as booleans"


@dataclass(frozen=True)
class Switch:
    """An override chose another variant of a section than the file did."""

    key: str  # the discriminator
    before: str
    after: str
    overridden: frozenset[str]  # keys of the section that were overridden too


@dataclass(frozen=True)
class Problem:
    """One line for the user, and what to do with the key so that further problems can be found behind it."""

    line: str
    path: tuple[str, ...]
    drop: bool = False  # go on as if the key were not there
    rename: str | None = None  # go on as if the key were this one


def problem(error: ErrorDetails, root: SectionType, data: Any, switches: Mapping[str, Switch]) -> Problem:
    """The user's view of one pydantic error on `data`."""
    path, holder, field = locate(root, error["loc"])
    dotted = ".".join(path)
    given = value_at(data, path)
    kind = error["type"]
    if kind == "extra_forbidden" and holder is not None:
        return _unknown_key(path, holder, root, given, data, switches)
    if kind == "missing" and given is None:
        need = f"set it to {describe(field)}" if field else "set it"
        return Problem(f"{dotted}: missing; {need}", path)
    if kind in ("value_error", "assertion_error"):
        text = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return Problem(f"{dotted}: {text}" if dotted else text, path)
    optional = field is not None and holder is not None and not field.is_required()
    line = f"{dotted} = {shown(given)}: "
    if kind in ("union_tag_invalid", "union_tag_not_found") and field is not None:
        return Problem(_unknown_variant(dotted, str(field.discriminator), list(variants(field)), given), path)
    if field is not None and not isinstance(given, dict) and (section_of(field) or variants(field)):
        return Problem(line + _not_a_section(dotted, given, field), path, optional)
    if isinstance(given, bool) and field is not None:
        quote = ", in quotes" if kind == "string_type" else ""
        return Problem(f"{line}a boolean ({_BOOLEANS}); write {describe(field)}{quote}", path, optional)
    back = f", or remove it for its default (as an override: ~{dotted})" if given is None and optional else ""
    if kind == "literal_error" and field is not None:
        meant = closest(given, describe(field).removeprefix("one of ").split(", "))
        return Problem(f"{line}not allowed{_did_you_mean(meant)}; set {describe(field)}{back}", path, optional)
    if field is not None and holder is not None:
        quote = ", in quotes" if kind == "string_type" and isinstance(given, int | float) else ""
        return Problem(f"{line}not accepted; set {describe(field)}{quote}{back}", path, optional)
    return Problem(f"{line}{error['msg']}", path)


def _did_you_mean(meant: str | None) -> str:
    return f"; did you mean {meant}?" if meant else ""


def _unknown_variant(dotted: str, key: str, tags: list[str], given: Any) -> str:
    if not isinstance(given, dict) or key not in given:
        return f"{dotted}.{key}: missing; set it to one of {', '.join(tags)}"
    meant = closest(given[key], tags)
    return f"{dotted}.{key} = {shown(given[key])}: unknown{_did_you_mean(meant)}; set one of {', '.join(tags)}"


def _not_a_section(dotted: str, given: Any, field: FieldInfo) -> str:
    if given is None:
        return f"an empty section; remove it (as an override: ~{dotted}), or write {describe(field)}"
    if str(given) in variants(field):
        return f"not a section; write {dotted}: {{{field.discriminator}: {given}}}"
    return f"not a section; write {describe(field)}"


def _unknown_key(
    path: tuple[str, ...], holder: SectionType, root: SectionType, given: Any, data: Any, switches: Mapping[str, Switch]
) -> Problem:
    key, where = path[-1], ".".join(path[:-1])
    line = f"{'.'.join(path)} = {shown(given)}: unknown key"
    switch = switches.get(where)
    if switch is not None and key not in switch.overridden:
        kept = {switch.key: switch.after} | {
            name: value for name, value in data[where].items() if name in holder.model_fields and name != switch.key
        }
        whole = ", ".join(f"{name}: {render(value, flow=True)}" for name, value in kept.items())
        line += (
            f" of {switch.key}: {switch.after}, left from the file's {switch.key}: {switch.before}; "
            f"replace the whole section: {where}='{{{whole}}}'"
        )
        return Problem(line, path, drop=True)

    known = [*holder.model_fields, *(["extends"] if holder is root else [])]
    meant = closest(key, known)
    elsewhere = [section for name, section in keys_everywhere(root) if name == key and section != where]
    # The same section in another variant first, then at most three.
    elsewhere = sorted(dict.fromkeys(elsewhere), key=lambda section: not section.startswith(f"{where} ("))[:3]
    if elsewhere:
        line += f"; {key} belongs to {' or '.join(section or 'the top of the file' for section in elsewhere)}"
    if meant:
        line += _did_you_mean(meant)
    if not elsewhere and not meant:
        line += f"; {where or 'the file'} knows {', '.join(known)}"
    taken = value_at(data, path[:-1])
    rename = meant if meant and not elsewhere and meant in holder.model_fields and meant not in taken else None
    return Problem(line, path, drop=True, rename=rename)

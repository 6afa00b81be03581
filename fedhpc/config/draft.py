"""What can be said of a config that the schema refuses: a draft of it, with the keys that are right by themselves.

Checks between keys read it like a config. A required key that is missing or wrong is not there, so a check that asks
for it ends with AttributeError, and only what it found until then is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from fedhpc.config.fields import SectionType, section_of, variants
from fedhpc.config.section import Section


def draft(kind: SectionType, data: Mapping[str, Any]) -> Section:
    """A section of `data` that was not validated as a whole. Optional keys that are wrong have their defaults."""
    values: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name in data:
            for value in _value(kind, name, field, data[name]):
                values[name] = value
    return kind.model_construct(_fields_set=set(values), **values)


def told(lines: Iterable[str], is_draft: bool) -> Iterator[str]:
    """The lines; of a draft those that come before a key is asked for that is not there."""
    try:
        yield from lines
    except AttributeError:
        if not is_draft:
            raise


def _value(holder: SectionType, name: str, field: FieldInfo, given: Any) -> Iterator[Any]:
    """The value, or nothing where it is not accepted."""
    kinds = variants(field)
    if isinstance(given, Mapping) and kinds:
        tag = given.get(str(field.discriminator))
        if isinstance(tag, str) and tag in kinds:
            yield draft(kinds[tag], given)
        return
    inner = section_of(field)
    if isinstance(given, Mapping) and inner is not None:
        yield draft(inner, given)
        return
    if isinstance(given, bool) and holder.takes_number(name):
        return
    limits = (*field.metadata, name)  # Annotated wants one at least, and pydantic passes over what it does not know
    try:
        yield TypeAdapter(Annotated[(field.annotation, *limits)]).validate_python(given)  # type: ignore[arg-type]
    except ValidationError:
        return

"""The base of every section of a config file."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Refuses unknown keys, and booleans where a number is meant (YAML reads ``yes`` as true, pydantic as 1)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_bool_for_number(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        # Turned into text here, so that the field itself refuses it and all other errors are still found.
        return {
            key: f"the boolean {str(value).lower()}" if isinstance(value, bool) and cls.takes_number(key) else value
            for key, value in data.items()
        }

    @classmethod
    def takes_number(cls, key: Any) -> bool:
        """Whether a key is for a number, and not for a boolean."""
        field = cls.model_fields.get(key)
        if field is None:
            return False
        kinds = {field.annotation, *get_args(field.annotation)}
        return bool(kinds & {int, float}) and bool not in kinds

"""How rows are dealt to clients."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedhpc.config.section import Section


class IidPartition(Section):
    """Patients are dealt to clients at random in equal numbers."""

    kind: Literal["iid"] = "iid"
    num_clients: int = Field(ge=1)
    min_examples: int = Field(1, ge=1)
    """Refuse a client with fewer training rows."""


class DirichletPartition(Section):
    """Each class of `label` is dealt in proportions drawn from Dirichlet(alpha): small alpha, strong skew."""

    kind: Literal["dirichlet"]
    num_clients: int = Field(ge=1)
    label: str
    """Label column of the file."""
    alpha: float = Field(gt=0)
    min_examples: int = Field(1, ge=1)
    """Redraw (200 times at most) until every client has this many training rows."""
    min_test_examples: int = Field(0, ge=0)
    """And this many test rows: a recall over few items says little."""


class ColumnPartition(Section):
    """One client for each value of a column: natural hospitals with ``column: site``."""

    kind: Literal["column"]
    column: str = "site"
    """``site`` or a label column."""
    leave_out: list[str] = Field(default_factory=list)
    """Sites that take no part in training and are evaluated as unseen ones."""
    min_examples: int = Field(1, ge=1)
    """Refuse a client with fewer training rows."""


class GroupsPartition(Section):
    """Whole sites are put together into `num_groups` clients of like size for each value of `within`: cohorts of
    hospitals."""

    kind: Literal["groups"]
    within: str | None = None
    """Label column (``cohort``) whose values are never mixed. null: one pool."""
    column: str = "site"
    """What stays whole: ``site`` or a label column."""
    num_groups: int = Field(3, ge=1)
    """Clients for each value of `within`."""
    min_examples: int = Field(1, ge=1)
    """Refuse a client with fewer training rows."""


class QuantityPartition(Section):
    """Client sizes drawn from Dirichlet(alpha), labels mixed alike: quantity skew."""

    kind: Literal["quantity"]
    num_clients: int = Field(ge=1)
    alpha: float = Field(gt=0)
    min_examples: int = Field(1, ge=1)
    """Redraw (200 times at most) until every client has this many training rows."""
    min_test_examples: int = Field(0, ge=0)
    """And this many test rows: a recall over few items says little."""


Partition = Annotated[
    IidPartition | DirichletPartition | ColumnPartition | GroupsPartition | QuantityPartition,
    Field(discriminator="kind"),
]

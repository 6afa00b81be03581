"""Commands that start many runs or look at them: fedhpc submit | sweep | status | collect."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""

"""What the commands of the command line share: arguments, errors, loading a run's config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fedhpc.config.schema import RunConfig

EXIT_USER_ERROR = 2
LOG_WIDTH = 200  # a table that goes into a file is not cut

Config = Annotated[Path, typer.Argument(help="YAML file of the run.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to it: dotted.key=value, such as algorithm.mu=0.1", show_default=False),
]


def fail(text: str, code: int = EXIT_USER_ERROR) -> typer.Exit:
    """Print an error without a traceback; raise what comes back."""
    typer.secho(f"fedhpc: {text}", fg=typer.colors.RED, err=True)
    return typer.Exit(code)


def load_run(
    config: Path, overrides: list[str] | None, world: int | None, files: bool = True, names: bool = False
) -> RunConfig:
    """The validated config; exits with all its problems otherwise.

    files: also look into its data. names: also whether the encoders' libraries know their names, which a run finds out
    for certain.
    """
    from fedhpc.config.checks import check, check_files
    from fedhpc.config.load import ConfigError, load_config

    try:
        try:
            resolved = load_config(config, overrides or [])
            problems = check(resolved, world)
        except ConfigError as error:
            if error.config is None:
                raise
            resolved, problems = error.config, list(error.problems)
            if error.is_draft:
                found = check_files(resolved, is_draft=True) if files else []
                raise ConfigError(str(config), [*problems, *found]) from error
        if files:
            from fedhpc.data.known import check_packed

            problems += [*check_files(resolved), *check_packed(resolved)]
        if names:
            from fedhpc.models.names import check_names

            problems += check_names(resolved)
        if problems:
            raise ConfigError(str(config), problems)
    except (ConfigError, OSError) as error:
        raise fail(str(error)) from error
    return resolved


def wide_console() -> Console:
    """The terminal, or a file that cuts no table."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)

"""The `mayafleet` command.

Every verb ends with one of the exit codes of `mayafleet.errors.ExitCode`, listed by `mayafleet --help` as well.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from mayafleet import __version__, lab, runner
from mayafleet.errors import EXIT_CODE_MEANINGS, ExitCode, FleetError

EXIT_CODES = (
    "Exit codes: " + "; ".join(f"{code:d} {meaning}" for code, meaning in EXIT_CODE_MEANINGS.items()) + "."
)

app = typer.Typer(
    help="Provision GPU hosts that serve Maya1 speech, verify them, and let them speak.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(lab.app, name="lab")

InventoryOption = Annotated[
    list[Path],
    typer.Option("--inventory", "-i", help="Inventory file or folder; repeatable.", show_default=False),
]
LimitOption = Annotated[
    str | None, typer.Option("--limit", "-l", help="Only hosts that this Ansible pattern matches.")
]
RegionOption = Annotated[
    list[str] | None, typer.Option("--region", help="Only hosts of this region; repeatable.")
]
RunsOption = Annotated[
    Path | None,
    typer.Option("--runs-dir", help="Where run folders are kept. [default: .runs in the project]"),
]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def provision(
    inventory: InventoryOption,
    limit: LimitOption = None,
    region: RegionOption = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; show what would change.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show the changes of files.")] = False,
    tags: Annotated[str, typer.Option(help="Only tasks with one of these tags: a,b.")] = "",
    skip_tags: Annotated[str, typer.Option(help="No tasks with one of these tags: a,b.")] = "",
    playbook: Annotated[str, typer.Option(help="Playbook in playbooks/, or a path to one.")] = "site",
    runs_dir: RunsOption = None,
) -> None:
    """Bring hosts to the state the inventory asks for. Running it again is safe."""
    result = runner.run_playbook(
        playbook,
        inventory,
        limit=limit,
        regions=region or (),
        tags=_words(tags),
        skip_tags=_words(skip_tags),
        check=check,
        diff=diff,
        runs_dir=runs_dir,
    )
    raise typer.Exit(result.exit_code)


@app.command()
def verify(
    inventory: InventoryOption,
    limit: LimitOption = None,
    region: RegionOption = None,
    runs_dir: RunsOption = None,
) -> None:
    """Check that hosts are as they should be, changing nothing."""
    result = runner.run_playbook(
        "verify",
        inventory,
        limit=limit,
        regions=region or (),
        runs_dir=runs_dir,
        failed_code=ExitCode.VERIFY_FAILED,
    )
    raise typer.Exit(result.exit_code)


def main() -> None:
    """Run the command line. Errors are told in a sentence; a traceback is for MAYAFLEET_DEBUG=1."""
    try:
        app()
    except FleetError as error:
        console = Console(stderr=True)
        console.print(Text.assemble(("Error: ", "bold red"), error.message), soft_wrap=True)
        console.print(Text(error.next_step), soft_wrap=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("MAYAFLEET_DEBUG") == "1":
            raise
        console = Console(stderr=True)
        console.print(
            Text.assemble(("Internal error: ", "bold red"), f"{type(error).__name__}: {error}"),
            soft_wrap=True,
        )
        console.print(
            "This is a bug in mayafleet. MAYAFLEET_DEBUG=1 shows where it happened.", soft_wrap=True
        )
        sys.exit(ExitCode.INTERNAL)


def _words(value: str) -> list[str]:
    return [word for word in value.split(",") if word]

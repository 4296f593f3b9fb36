"""The `mayafleet` command.

Every verb ends with one of the exit codes of `mayafleet.errors.ExitCode`; `mayafleet --help` lists them too.
"""

from __future__ import annotations

import math
import os
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mayafleet import __version__, lab, runner, speech, tokens
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
jwt_app = typer.Typer(help="Keys and tokens that open the speech service.", no_args_is_help=True)
app.add_typer(jwt_app, name="jwt")

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


@app.command()
def say(
    text: Annotated[str, typer.Argument(help="Text to speak; - reads it from stdin.")],
    inventory: Annotated[
        list[Path] | None, typer.Option("--inventory", "-i", help="Inventory file or folder; repeatable.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Host that speaks. [default: the inventory's only gpu host]")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="[default: speech.FORMAT]")] = None,
    audio_format: Annotated[
        str | None,
        typer.Option(
            "--format", help=f"{', '.join(speech.FORMATS)}. [default: as the file's name says, or wav]"
        ),
    ] = None,
    voice: Annotated[str | None, typer.Option(help="[default: the host's]")] = None,
    speed: Annotated[float | None, typer.Option(help="0.25 to 4.0. [default: 1.0]")] = None,
    model: Annotated[str, typer.Option(help="Model name to ask for.")] = speech.MODEL,
    stream: Annotated[bool, typer.Option(help="Take the audio while it is being made.")] = True,
    url: Annotated[str | None, typer.Option(help="Service address, instead of an inventory.")] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Authority to trust at --url. [default: the system's]")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the token for --url.")] = None,
) -> None:
    """Have a host speak a text into a file, and show how fast it did."""
    suffix = output.suffix.removeprefix(".") if output else ""
    audio_format = audio_format or (suffix if suffix in speech.FORMATS else "wav")
    spoken = speech.say(
        sys.stdin.read() if text == "-" else text,
        _connection(inventory, host, url, ca, token_file),
        output or Path(f"speech.{audio_format}"),
        audio_format=audio_format,
        voice=voice,
        speed=speed,
        model=model,
        stream=stream,
    )
    _show(spoken)


@jwt_app.command("init")
def jwt_init(folder: Annotated[Path, typer.Argument(help="Folder for private.pem and jwks.json.")]) -> None:
    """Make the key that signs tokens, and the public half that hosts check them with."""
    private, public = tokens.create_key_pair(folder)
    print(f"{private} signs tokens and stays here; {public} is for the hosts.")


@jwt_app.command("issue")
def jwt_issue(
    subject: Annotated[str, typer.Option(help="Whom the token is for.")],
    ttl: Annotated[str, typer.Option(help="How long it is good for: 90s, 5m, 1h, 7d.")] = "5m",
    inventory: Annotated[
        list[Path] | None, typer.Option("--inventory", "-i", help="Inventory file or folder; repeatable.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Host the token is for. [default: the inventory's only gpu host]")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Private key, instead of an inventory.")] = None,
    issuer: Annotated[str | None, typer.Option(help="Issuer, with --key.")] = None,
    audience: Annotated[str | None, typer.Option(help="Audience, with --key.")] = None,
    scope: Annotated[
        list[tokens.Scope], typer.Option(help="What the token allows; repeatable.", show_default="speak")
    ] = [tokens.Scope.SPEAK],  # noqa: B006  typer's way to give a list a default
    tenant: Annotated[
        str | None, typer.Option(help="On whose behalf the subject asks. [default: its own]")
    ] = None,
) -> None:
    """Print a token, and nothing else."""
    if inventory and not key:
        signing = speech.signing(inventory, host)
    elif key and issuer and audience and not inventory:
        signing = speech.Signing(key, issuer, audience)
    else:
        raise FleetError(
            "A token needs a key, an issuer and an audience.",
            "Give --inventory, which knows them, or all of --key, --issuer and --audience.",
            ExitCode.USAGE,
        )
    print(
        tokens.issue(
            signing.key_file,
            issuer=signing.issuer,
            audience=signing.audience,
            subject=subject,
            ttl=_time_span(ttl),
            scopes=scope,
            tenant=tenant,
        )
    )


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


def _connection(
    inventory: list[Path] | None, host: str | None, url: str | None, ca: Path | None, token_file: Path | None
) -> speech.Connection:
    if inventory and not (url or ca or token_file):
        return speech.connection(inventory, host)
    if inventory or not url or not token_file:
        raise FleetError(
            "It is not clear which service is to speak.",
            "Give --inventory and --host, or --url and --token-file.",
            ExitCode.USAGE,
        )
    try:
        token = token_file.read_text().strip()
    except OSError as error:
        raise FleetError(
            f"The token file {token_file} cannot be read: {error.strerror}.",
            "Make a token with `mayafleet jwt issue`.",
            ExitCode.USAGE,
        ) from None
    return speech.Connection(url, token, ca)


def _show(spoken: speech.Spoken) -> None:
    known = not math.isnan(spoken.duration)
    table = Table.grid(padding=(0, 2))
    table.add_row("TTFA", f"{spoken.ttfa:.3f} s")
    table.add_row(
        "RTF", f"{spoken.rtf:.3f}" if known else "unknown: this format says its length only with --no-stream"
    )
    table.add_row("engine", spoken.engine)
    table.add_row("voice", spoken.voice)
    table.add_row("cache", spoken.cache)
    table.add_row("audio", f"{spoken.duration:.2f} s" if known else "of unknown length")
    table.add_row("file", Text(str(spoken.path), overflow="fold"))
    Console(highlight=False).print(table)


def _time_span(value: str) -> timedelta:
    parts = re.fullmatch(r"([1-9]\d{0,6})([smhd])", value)
    if not parts:
        raise FleetError(f"{value!r} is not a time span.", "Write it like 90s, 5m, 1h or 7d.", ExitCode.USAGE)
    return timedelta(**{{"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[parts[2]]: int(parts[1])})


def _words(value: str) -> list[str]:
    return [word for word in value.split(",") if word]

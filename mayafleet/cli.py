"""The `mayafleet` command.

Every verb ends with one of the exit codes of `mayafleet.errors.ExitCode`; `mayafleet --help` lists them too.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mayafleet import (
    __version__,
    certs,
    console,
    hardening,
    lab,
    project,
    runner,
    secrets,
    speech,
    tokens,
    versions,
)
from mayafleet import inventory as inventories
from mayafleet import preflight as judgement
from mayafleet.checks import worst
from mayafleet.errors import EXIT_CODE_MEANINGS, ExitCode, FleetError
from mayafleet.options import (
    CheckOption,
    HostsArgument,
    InventoryOption,
    JsonOption,
    LimitOption,
    OptionalInventoryOption,
    RegionOption,
    RunsOption,
    time_span,
)

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
app.add_typer(versions.bundle_app, name="bundle")
app.add_typer(hardening.app, name="hardening")
app.add_typer(secrets.app, name="secrets")
app.command("compat")(versions.judge)
jwt_app = typer.Typer(help="Keys and tokens that open the speech service.", no_args_is_help=True)
app.add_typer(jwt_app, name="jwt")
cert_app = typer.Typer(help="Certificates by which clients prove who they are.", no_args_is_help=True)
app.add_typer(cert_app, name="cert")


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
    check: CheckOption = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show the changes of files.")] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Have the run folder tell more: -v to -vvvv.")
    ] = 0,
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
        verbosity=verbose,
        runs_dir=runs_dir,
        approve=versions.require_fit,
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
def preflight(
    inventory: InventoryOption,
    host: HostsArgument = None,
    limit: LimitOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
    runs_dir: RunsOption = None,
) -> None:
    """Judge whether hosts are fit for what the inventory wants of them, changing nothing."""
    with Console(stderr=True).status("Asking the hosts"):
        result = runner.run_playbook(
            "preflight",
            inventory,
            limit=_limit(host, limit),
            regions=region or (),
            runs_dir=runs_dir,
            failed_code=ExitCode.UNFIT,
            console=Console(quiet=True),
        )
    checks = judgement.of_run(sorted(result.hosts), result.preflight, result.failures)
    if as_json:
        hosts = {name: {"level": worst(own), "checks": own} for name, own in checks.items()}
        print(json.dumps({"exit_code": result.exit_code, "hosts": hosts}, indent=2, default=asdict))
    else:
        console.preflight_report(checks, Console(highlight=False))
    raise typer.Exit(result.exit_code)


@app.command("gpu-health")
def gpu_health(
    inventory: InventoryOption,
    host: HostsArgument = None,
    limit: LimitOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
    runs_dir: RunsOption = None,
) -> None:
    """Show how GPUs are: clocks, memory errors, PCIe link, XIDs, and what to do; changing nothing."""
    with Console(stderr=True).status("Asking the hosts"):
        result = runner.run_playbook(
            "gpu_health",
            inventory,
            limit=_limit(host, limit),
            regions=region or (),
            runs_dir=runs_dir,
            console=Console(quiet=True),
        )
    unwell = any(document["level"] == "fail" for document in result.gpus.values())
    code = ExitCode.UNFIT if unwell and result.exit_code == ExitCode.OK else result.exit_code
    if as_json:
        failures = [asdict(failure) for failure in result.failures]
        print(json.dumps({"exit_code": code, "hosts": result.gpus, "failures": failures}, indent=2))
    else:
        console.gpu_report(result.gpus, result.failures, Console(highlight=False))
    raise typer.Exit(code)


@app.command()
def drain(
    inventory: InventoryOption,
    host: HostsArgument = None,
    limit: LimitOption = None,
    region: RegionOption = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever finds the host drained.")] = "",
    timeout: Annotated[str, typer.Option(help="How long running answers may take: 90s, 5m, 1h.")] = "5m",
    force: Annotated[
        bool, typer.Option("--force", help="Cut off what is not finished by then, instead of failing.")
    ] = False,
    check: CheckOption = False,
    runs_dir: RunsOption = None,
) -> None:
    """Take hosts out of service, one at a time, without cutting anybody off."""
    seconds = int(time_span(timeout).total_seconds())
    _run_on_chosen(
        "drain",
        inventory,
        host,
        limit,
        region,
        check=check,
        variables={"drain_reason": reason, "drain_timeout_seconds": seconds, "drain_force": force},
        runs_dir=runs_dir,
    )


@app.command()
def undrain(
    inventory: InventoryOption,
    host: HostsArgument = None,
    limit: LimitOption = None,
    region: RegionOption = None,
    check: CheckOption = False,
    runs_dir: RunsOption = None,
) -> None:
    """Put drained hosts back into service."""
    _run_on_chosen(
        "undrain",
        inventory,
        host,
        limit,
        region,
        check=check,
        runs_dir=runs_dir,
    )


@app.command()
def upgrade(
    inventory: InventoryOption,
    host: HostsArgument = None,
    limit: LimitOption = None,
    region: RegionOption = None,
    kernel: Annotated[
        bool, typer.Option("--kernel", help="Install a newer kernel too, where there is one.")
    ] = False,
    check: CheckOption = False,
    runs_dir: RunsOption = None,
) -> None:
    """Bring hosts to the driver of their bundle, one at a time; the first that fails ends the run."""
    _run_on_chosen(
        "upgrade",
        inventory,
        host,
        limit,
        region,
        check=check,
        variables={"upgrade_kernel": True} if kernel else None,
        runs_dir=runs_dir,
        approve=versions.require_fit,
    )


@app.command()
def rollback(
    inventory: InventoryOption,
    host: HostsArgument = None,
    limit: LimitOption = None,
    region: RegionOption = None,
    check: CheckOption = False,
    runs_dir: RunsOption = None,
) -> None:
    """Bring hosts back to the driver that they had before, from packages kept on them, one at a time."""
    _run_on_chosen(
        "rollback",
        inventory,
        host,
        limit,
        region,
        check=check,
        runs_dir=runs_dir,
    )


@app.command()
def say(
    text: Annotated[str, typer.Argument(help="Text to speak; - reads it from stdin.")],
    inventory: OptionalInventoryOption = None,
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
    certificate: Annotated[
        Path | None,
        typer.Option(
            help="Client certificate to show, with its key in the same file, as `cert issue` writes it."
        ),
    ] = None,
) -> None:
    """Have a host speak a text into a file, and show how fast it did."""
    suffix = output.suffix.removeprefix(".") if output else ""
    audio_format = audio_format or (suffix if suffix in speech.FORMATS else "wav")
    spoken = speech.say(
        sys.stdin.read() if text == "-" else text,
        _connection(inventory, host, url, ca, token_file, certificate),
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
    inventory: OptionalInventoryOption = None,
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
        signing = speech.Signing(tokens.load_key(key), issuer, audience)
    else:
        raise FleetError(
            "A token needs a key, an issuer and an audience.",
            "Give --inventory, which knows them, or all of --key, --issuer and --audience.",
            ExitCode.USAGE,
        )
    print(
        tokens.issue(
            signing.key,
            issuer=signing.issuer,
            audience=signing.audience,
            subject=subject,
            ttl=time_span(ttl),
            scopes=scope,
            tenant=tenant,
        )
    )


@cert_app.command("issue")
def cert_issue(
    name: Annotated[str, typer.Argument(help="Whom the certificate is for.")],
    inventory: InventoryOption,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it is valid.")] = 365,
    scope: Annotated[
        list[tokens.Scope], typer.Option(help="What it allows; repeatable.", show_default="speak")
    ] = [tokens.Scope.SPEAK],  # noqa: B006  typer's way to give a list a default
    tenant: Annotated[str | None, typer.Option(help="On whose behalf NAME asks. [default: its own]")] = None,
    renew: Annotated[bool, typer.Option("--renew", help="Also where NAME has a valid one.")] = False,
) -> None:
    """Sign a certificate, and say which file to hand over. Makes the authority where there is none."""
    folder = _client_authority(inventory)
    if folder.is_dir() and any(folder.iterdir()):
        authority = certs.Authority(folder)
    else:
        authority = certs.Authority.create(folder)
        print(f"{folder} holds the authority of clients; keep ca.key in it secret, and a backup of it all.")
    path = authority.issue(name, days=days, scopes=scope, tenant=tenant, renew=renew)
    print(f"{path} is certificate and key of {name}: hand it over by a safe way, then remove it here.")


@cert_app.command("revoke")
def cert_revoke(
    which: Annotated[str, typer.Argument(metavar="NAME|SERIAL", help="Whose, or which one.")],
    inventory: InventoryOption,
    push: Annotated[bool, typer.Option(help="Tell the hosts at once.")] = True,
    runs_dir: RunsOption = None,
) -> None:
    """Revoke a client's certificates, and tell all hosts."""
    for one in certs.Authority(_client_authority(inventory)).revoke(which):
        print(f"Revoked {one.serial} of {one.name}.")
    if not push:
        print("Hosts accept it until `mayafleet provision --tags gateway` has run.")
        return
    result = runner.run_playbook("revoke", inventory, runs_dir=runs_dir)
    if result.exit_code != ExitCode.OK:
        raise FleetError(
            "Not every host was told; where the run failed, the certificate is still accepted.",
            "Mend what is named above, then run `mayafleet provision --playbook revoke`.",
            result.exit_code,
        )


@cert_app.command("list")
def cert_list(inventory: InventoryOption, as_json: JsonOption = False) -> None:
    """Show every certificate that was issued to a client, and how it stands."""
    authority = certs.Authority(_client_authority(inventory))
    issued = authority.certificates()
    if as_json:
        print(
            json.dumps(
                {"crl_expires": authority.crl_expires, "certificates": [asdict(one) for one in issued]},
                default=str,
            )
        )
        return
    styles = {certs.State.VALID: "green", certs.State.EXPIRED: "dim", certs.State.REVOKED: "red"}
    table = Table("name", "tenant", "scopes", "expires", "state", "serial")
    for one in issued:
        table.add_row(
            one.name,
            one.tenant,
            " ".join(one.scopes),
            f"{one.expires:%Y-%m-%d}",
            Text(one.state, style=styles[one.state]),
            one.serial,
        )
    Console().print(table)
    print(f"The list of revoked certificates is valid until {authority.crl_expires:%Y-%m-%d}.")


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


def _limit(hosts: list[str] | None, limit: str | None) -> str | None:
    if hosts and limit:
        raise FleetError("Hosts are named twice.", "Give their names, or --limit.", ExitCode.USAGE)
    return ",".join(hosts) if hosts else limit


def _run_on_chosen(
    verb: str,
    inventory: list[Path],
    hosts: list[str] | None,
    limit: str | None,
    regions: list[str] | None,
    **options: Any,
) -> NoReturn:
    """Run the verb's playbook, and exit as it went. The whole fleet is never met by an oversight."""
    if not (hosts or limit or regions):
        raise FleetError(
            f"It is not said which hosts to {verb}.",
            "Name them, or give --limit or --region; --limit all means every one.",
            ExitCode.USAGE,
        )
    result = runner.run_playbook(
        verb, inventory, limit=_limit(hosts, limit), regions=regions or (), **options
    )
    raise typer.Exit(result.exit_code)


def _client_authority(paths: list[Path]) -> Path:
    """The one folder that the inventory's hosts get their clients' authority from."""
    inventory = inventories.load(paths)
    speaking = inventory.groups.get("gpu", [])
    name = "gateway_client_authority_dir"
    values = inventories.variables_of(inventory, speaking, [name]) if speaking else {}
    folders = {str(one[name]) for one in values.values() if one[name]}
    if len(folders) != 1:
        raise FleetError(
            f"The inventory's hosts name {len(folders) or 'no'} folders for the authority of clients; "
            "allowed is one.",
            f"Set {name} for all of group gpu, for example to {{{{ inventory_dir }}}}/files/clients.",
            ExitCode.USAGE,
        )
    return project.root() / folders.pop()


def _connection(
    inventory: list[Path] | None,
    host: str | None,
    url: str | None,
    ca: Path | None,
    token_file: Path | None,
    certificate: Path | None,
) -> speech.Connection:
    if inventory and not (url or ca or token_file):
        return replace(speech.connection(inventory, host), certificate=certificate)
    if inventory or not url or not (token_file or certificate):
        raise FleetError(
            "It is not clear which service is to speak.",
            "Give --inventory and --host, or --url and --token-file or --certificate.",
            ExitCode.USAGE,
        )
    try:
        token = token_file.read_text().strip() if token_file else None
    except OSError as error:
        raise FleetError(
            f"The token file {token_file} cannot be read: {error.strerror}.",
            "Make a token with `mayafleet jwt issue`.",
            ExitCode.USAGE,
        ) from None
    return speech.Connection(url, token, ca, certificate)


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


def _words(value: str) -> list[str]:
    return [word for word in value.split(",") if word]

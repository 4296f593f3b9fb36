"""The verbs about versions: `mayafleet bundle` and `mayafleet compat`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from ansible.module_utils.parsing.convert_bool import boolean
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mayafleet import bundles, compat, sbom
from mayafleet import inventory as inventories
from mayafleet.checks import Level, worst
from mayafleet.compat import Finding
from mayafleet.console import LEVEL_STYLES
from mayafleet.errors import ExitCode, FleetError
from mayafleet.inventory import Inventory
from mayafleet.options import JsonOption, LimitOption, OptionalInventoryOption, RegionOption

DEFAULT = "535"
bundle_app = typer.Typer(help="Sets of versions that go together.", no_args_is_help=True)
BundleArgument = Annotated[str, typer.Argument(help="Name of a bundle, or a file that ends in .yml.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Take warnings as failures.")]


@bundle_app.command("list")
def list_bundles(as_json: JsonOption = False) -> None:
    """Show which bundles there are, and how each stands."""
    known = [bundles.load(name) for name in bundles.names()]
    if as_json:
        print(json.dumps(known))
        return
    table = Table("bundle", "driver", "CUDA", "vLLM", "how it stands", "what it is for")
    for bundle in known:
        findings = compat.judge_bundle(bundle)
        news = [one for one in findings if one.level != "pass"] or [_of(findings, "driver branch")]
        table.add_row(
            bundle["name"],
            bundle["driver"]["version"],
            bundle["cuda"]["version"],
            bundle["inference"]["vllm"],
            Text("\n").join(Text(one.found, style=LEVEL_STYLES[one.level]) for one in news),
            bundle["summary"],
        )
    Console().print(table)


@bundle_app.command()
def show(name: BundleArgument, as_json: JsonOption = False) -> None:
    """Show what a bundle holds."""
    bundle = bundles.load(name)
    if as_json:
        print(json.dumps(bundle))
        return
    table = Table("part", "value", title=bundle["summary"])
    for field, value in bundles.flat(bundle).items():
        table.add_row(field, str(value))
    Console().print(table)


@bundle_app.command()
def diff(old: BundleArgument, new: BundleArgument, as_json: JsonOption = False) -> None:
    """Show in what two bundles differ."""
    changes = bundles.differences(bundles.load(old), bundles.load(new))
    if as_json:
        print(json.dumps({field: [before, after] for field, before, after in changes}))
        return
    table = Table("part", old, new)
    for change in changes:
        table.add_row(*change)
    Console().print(table)


@bundle_app.command()
def check(
    name: Annotated[list[str] | None, typer.Argument(help="Names or files. [default: all bundles]")] = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check that the parts of a bundle go together, are supported, and have no known vulnerability."""
    _tell([_judge(None, one, []) for one in name or bundles.names()], strict, as_json)


@bundle_app.command("sbom")
def bill(name: BundleArgument = DEFAULT) -> None:
    """Print the bill of materials of this release with a bundle: CycloneDX 1.6, JSON."""
    print(sbom.of(bundles.load(name)))


def judge(
    bundle: Annotated[
        str | None, typer.Option(help="Name of a bundle, or a file. [default: the host's, or 535]")
    ] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="Name of a GPU of one host; repeatable.")] = None,
    inventory: OptionalInventoryOption = None,
    host: Annotated[list[str] | None, typer.Option(help="Only this host; repeatable.")] = None,
    limit: LimitOption = None,
    region: RegionOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Judge whether GPUs go with a bundle: those named, or those that an inventory says its hosts have.

    No host is asked: `mayafleet preflight` looks at the machines themselves.
    """
    if bool(gpu) == bool(inventory):
        raise FleetError(
            "It is not clear what is to be judged.", "Give --gpu, or --inventory.", ExitCode.USAGE
        )
    if host and limit:
        raise FleetError("Hosts are named twice.", "Give --host, or --limit.", ExitCode.USAGE)
    if gpu:
        _tell([_judge(None, bundle or DEFAULT, gpu)], strict, as_json)
        return
    known = inventories.load(inventory or [])
    selected = inventories.select(known, ",".join(host) if host else limit, region or ()).hosts
    wanted = _wanted(known, selected)
    if not wanted:
        raise FleetError(
            f"None of {inventories.enumerate_some(selected)} is in group gpu.",
            known.describe(),
            ExitCode.NOTHING_MATCHED,
        )
    judged = [_judge(one.host, bundle or one.bundle, one.gpus) for one in wanted]
    if not as_json:
        told = "Judged by what the inventory says of its hosts; `mayafleet preflight` looks at the machines."
        Console(stderr=True).print(told, soft_wrap=True)
    _tell(judged, strict, as_json)


def require_fit(inventory: Inventory, hosts: Sequence[str]) -> None:
    """Raise FleetError where the bundle of one of these hosts contradicts itself or the host's GPU.

    By what the inventory says, like role bundle; no host is connected to.
    """
    refused: dict[str, list[str]] = {}
    for one in _wanted(inventory, hosts):
        findings = compat.judge(bundles.load(one.bundle), one.gpus)
        bad = ("warn", "fail") if one.refuse_insecure else ("fail",)
        for finding in findings:
            if finding.level in bad:
                reason = f"bundle {one.bundle}: {finding.check}: {finding.found}. {finding.mend}"
                refused.setdefault(reason, []).append(one.host)
    if refused:
        reasons = [f"{inventories.enumerate_some(who)}: {reason}" for reason, who in refused.items()]
        raise FleetError(
            f"Not provisioned. {' '.join(reasons)}",
            "No host was connected to; `mayafleet compat` tells more.",
            ExitCode.UNFIT,
        )


@dataclass(frozen=True)
class _Wanted:
    """What an inventory wants of a host that is to have GPUs."""

    host: str
    bundle: str
    gpus: list[str]
    refuse_insecure: bool


def _wanted(inventory: Inventory, hosts: Sequence[str]) -> list[_Wanted]:
    speaking = [host for host in hosts if host in inventory.groups.get("gpu", [])]
    if not speaking:
        return []
    names = ("hardware", "fleet_bundle", "fleet_refuse_insecure")
    return [
        _Wanted(
            host,
            str(values["fleet_bundle"] or DEFAULT),
            [name] if (name := (values["hardware"] or {}).get("gpu")) else [],
            boolean(values["fleet_refuse_insecure"] or False),
        )
        for host, values in inventories.variables_of(inventory, speaking, names).items()
    ]


@dataclass(frozen=True)
class _Judged:
    """A bundle with the GPUs of a host (None: of no certain host), and what the table says of them."""

    host: str | None
    bundle: str
    gpus: Sequence[str]
    level: Level
    findings: list[Finding]

    @property
    def title(self) -> str:
        with_gpus = f" with {', '.join(self.gpus)}" if self.gpus else ""
        return f"{f'{self.host}: ' if self.host else ''}bundle {self.bundle}{with_gpus}"


def _judge(host: str | None, name: str, gpus: Sequence[str]) -> _Judged:
    """Raises FleetError where a bundle or a GPU is unknown."""
    bundle = bundles.load(name)
    rows = [compat.gpu(gpu) for gpu in gpus]
    findings = [*compat.judge_gpus(bundle, rows), *compat.judge_bundle(bundle)]
    return _Judged(host, bundle["name"], gpus, worst(findings), findings)


def _tell(judged: Sequence[_Judged], strict: bool, as_json: bool) -> None:
    """Print what was found, and exit with UNFIT if any of it is bad."""
    if as_json:
        print(json.dumps([asdict(one) for one in judged]))
    else:
        console = Console()
        for one in judged:
            table = Table("check", "", "found", "what to do", "source", title=one.title, title_justify="left")
            for finding in one.findings:
                level = Text(finding.level, style=LEVEL_STYLES[finding.level])
                table.add_row(
                    finding.check, level, finding.found, finding.mend, Text(finding.source, style="dim")
                )
            console.print(table)
    levels = {one.level for one in judged}
    if "fail" in levels or (strict and "warn" in levels):
        raise typer.Exit(ExitCode.UNFIT)


def _of(findings: Sequence[Finding], check: str) -> Finding:
    return next(one for one in findings if one.check == check)

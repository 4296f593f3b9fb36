"""`mayafleet hardening`: what role hardening leaves out of the CIS benchmark, for people and for OpenSCAP.

Both come out of the role's own files: its rules and its list of exceptions.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import typer
import yaml

from mayafleet import project
from mayafleet.errors import ExitCode, FleetError

XCCDF = "http://checklists.nist.gov/xccdf/1.2"
SCAP = "xccdf_org.ssgproject.content"
# Systems by the names of their SCAP content: /usr/share/xml/scap/ssg/content/ssg-NAME-ds.xml.
SYSTEMS = ("debian12", "ubuntu2204", "ubuntu2404")

app = typer.Typer(help="Exceptions from the CIS benchmark.", no_args_is_help=True)


@dataclass(frozen=True)
class Waiver:
    """One exception: a rule that is off, with what an auditor asks."""

    rule: str
    reason: str
    owner: str
    review: datetime.date
    title: str
    cis: str | None
    cis_ubuntu2204: str | None
    scap: tuple[str, ...]

    def number(self, system: str) -> str:
        """The rule's number in the benchmark of a system."""
        return (self.cis_ubuntu2204 if system == "ubuntu2204" else None) or self.cis or "none"

    def overdue(self, today: datetime.date) -> bool:
        return self.review < today


ExceptionsOption = Annotated[
    Path | None,
    typer.Option(
        "--exceptions",
        help="YAML file with hardening_exceptions. [default: the role's own list]",
        exists=True,
    ),
]
SystemOption = Annotated[str, typer.Option(help=f"One of {', '.join(SYSTEMS)}.")]


@app.command()
def report(exceptions: ExceptionsOption = None, system: SystemOption = "debian12") -> None:
    """Print the waiver report, a table in Markdown."""
    found = waivers(exceptions)
    print(markdown(found, checked(system), datetime.date.today()))
    warn_of_overdue(found)


@app.command()
def tailoring(
    exceptions: ExceptionsOption = None,
    system: SystemOption = "debian12",
    level: Annotated[int, typer.Option(min=1, max=2, help="Level of the benchmark.")] = 1,
) -> None:
    """Print OpenSCAP's tailoring file: the CIS profile without the exceptions."""
    found = waivers(exceptions)
    print(tailoring_xml(found, checked(system), level))
    warn_of_overdue(found)


def checked(system: str) -> str:
    if system not in SYSTEMS:
        raise FleetError(
            f"There is no SCAP content for {system!r}.", f"Name one of {', '.join(SYSTEMS)}.", ExitCode.USAGE
        )
    return system


def warn_of_overdue(found: Sequence[Waiver]) -> None:
    today = datetime.date.today()
    for waiver in found:
        if waiver.overdue(today):
            typer.echo(
                f"overdue: {waiver.rule} was to be reviewed by {waiver.owner} until {waiver.review}", err=True
            )


def waivers(exceptions: Path | None = None) -> list[Waiver]:
    """The exceptions of a file, or of the role. Raises FleetError where one is not whole."""
    role = project.root() / "roles" / "hardening"
    rules: dict[str, dict[str, Any]] = yaml.safe_load((role / "vars/main/rules.yml").read_text())[
        "__hardening_rules"
    ]
    path = exceptions or role / "defaults/main/exceptions.yml"
    entries = (yaml.safe_load(path.read_text()) or {}).get("hardening_exceptions") or []
    return [waiver(path, entry, rules) for entry in entries]


def waiver(path: Path, entry: dict[str, Any], rules: dict[str, dict[str, Any]]) -> Waiver:
    missing = [field for field in ("rule", "reason", "owner", "review") if not entry.get(field)]
    if missing:
        raise FleetError(
            f"{path}: the exception {entry.get('rule', entry)!r} lacks {', '.join(missing)}.",
            "Each exception has rule, reason, owner and review (a date, YYYY-MM-DD).",
            ExitCode.USAGE,
        )
    if entry["rule"] not in rules:
        raise FleetError(
            f"{path}: hardening_exceptions names {entry['rule']!r}, which is no rule.",
            "docs/hardening.md says where the rules are listed.",
            ExitCode.USAGE,
        )
    try:
        review = datetime.date.fromisoformat(str(entry["review"]))
    except ValueError:
        raise FleetError(
            f"{path}: review of {entry['rule']} is {entry['review']!r}, which is no date.",
            "Write it as YYYY-MM-DD.",
            ExitCode.USAGE,
        ) from None
    rule = rules[entry["rule"]]
    return Waiver(
        rule=entry["rule"],
        reason=" ".join(entry["reason"].split()),
        owner=entry["owner"],
        review=review,
        title=rule["title"],
        cis=rule.get("cis"),
        cis_ubuntu2204=rule.get("cis_ubuntu2204"),
        scap=tuple(rule.get("scap", ())),
    )


def markdown(found: Sequence[Waiver], system: str, today: datetime.date) -> str:
    """The waiver report: one row an exception."""
    lines = [
        f"# Exceptions from the CIS benchmark ({system})",
        "",
        "| CIS | rule | what it asks | why it is off | owner | review by |",
        "|---|---|---|---|---|---|",
    ]
    for waiver in found:
        review = f"**{waiver.review}, overdue**" if waiver.overdue(today) else str(waiver.review)
        cells = [waiver.number(system), f"`{waiver.rule}`", waiver.title, waiver.reason, waiver.owner, review]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def tailoring_xml(found: Sequence[Waiver], system: str, level: int) -> str:
    """A profile of the SCAP Security Guide without the rules that are waived."""
    ElementTree.register_namespace("xccdf", XCCDF)
    root = ElementTree.Element(f"{{{XCCDF}}}Tailoring", id="xccdf_maya1_tailoring_gpu_serving")
    content = f"/usr/share/xml/scap/ssg/content/ssg-{system}-ds.xml"
    ElementTree.SubElement(root, f"{{{XCCDF}}}benchmark", href=content)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    ElementTree.SubElement(root, f"{{{XCCDF}}}version", time=now).text = "1"
    profile = ElementTree.SubElement(
        root,
        f"{{{XCCDF}}}Profile",
        id="xccdf_maya1_profile_gpu_serving",
        extends=f"{SCAP}_profile_cis_level{level}_server",
    )
    ElementTree.SubElement(profile, f"{{{XCCDF}}}title").text = f"CIS level {level} server, serving from GPUs"
    for waiver in found:
        for rule in waiver.scap:
            ElementTree.SubElement(
                profile, f"{{{XCCDF}}}select", idref=f"{SCAP}_rule_{rule}", selected="false"
            )
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)

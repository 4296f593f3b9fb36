"""Exceptions from the CIS benchmark, and the role's modules on files of a test."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from xml.etree import ElementTree

import host_files
import mount_options
import pytest
import yaml
from typer.testing import CliRunner

from mayafleet import hardening
from mayafleet.cli import app
from mayafleet.errors import FleetError

ROLE = Path(__file__).parents[2] / "roles/hardening"
RULES = yaml.safe_load((ROLE / "vars/main/rules.yml").read_text())["__hardening_rules"]


def exceptions(folder: Path, **changes: object) -> Path:
    entry = {"rule": "rsync", "reason": "models come by it", "owner": "platform", "review": "2030-01-31"}
    path = folder / "exceptions.yml"
    path.write_text(yaml.safe_dump({"hardening_exceptions": [{**entry, **changes}]}))
    return path


def test_every_exception_of_the_role_is_whole() -> None:
    assert len(hardening.waivers()) > 10


def test_every_rule_is_applied_by_a_part_that_main_runs() -> None:
    main = (ROLE / "tasks/main.yml").read_text()
    parts = {rule["part"] for rule in RULES.values()} - {"elsewhere"}
    assert {part for part in parts if f"__hardening_tags.{part} " not in main} == set()


def test_the_tailoring_leaves_out_what_is_waived_and_nothing_else(tmp_path: Path) -> None:
    found = hardening.waivers(exceptions(tmp_path))
    root = ElementTree.fromstring(hardening.tailoring_xml(found, "debian12", 1))
    profile = root.find(f"{{{hardening.XCCDF}}}Profile")
    assert profile is not None
    assert profile.get("extends") == "xccdf_org.ssgproject.content_profile_cis_level1_server"
    selects = {
        select.get("idref"): select.get("selected")
        for select in profile.findall(f"{{{hardening.XCCDF}}}select")
    }
    assert selects == {
        f"xccdf_org.ssgproject.content_rule_{rule}": "false" for rule in RULES["rsync"]["scap"]
    }


def test_an_overdue_review_is_told(tmp_path: Path) -> None:
    path = exceptions(tmp_path, review="2020-01-31")
    told = CliRunner().invoke(app, ["hardening", "report", "--exceptions", str(path)])
    assert told.exit_code == 0
    assert "**2020-01-31, overdue**" in told.output
    assert "overdue: rsync was to be reviewed by platform until 2020-01-31" in told.output


def test_ubuntu_22_04_has_numbers_of_its_own() -> None:
    rule = hardening.waiver(
        Path("x"), {"rule": "auditd", "reason": "r", "owner": "o", "review": "2030-01-31"}, RULES
    )
    assert (rule.number("debian12"), rule.number("ubuntu2204")) == ("6.2.1.1", "6.3.1.1")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rule": "rsink"}, "'rsink', which is no rule"),
        ({"owner": ""}, "lacks owner"),
        ({"review": "next year"}, "which is no date"),
    ],
)
def test_an_exception_that_is_not_whole_is_refused(
    tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    with pytest.raises(FleetError, match=said):
        hardening.waivers(exceptions(tmp_path, **changes))


def mine(**wanted: object) -> dict[str, object]:
    """An entry whose files stay with whoever runs the test."""
    return {"keep_owner": True, **wanted}


def test_modes_are_a_ceiling(tmp_path: Path) -> None:
    (tmp_path / "open").touch(mode=0o666)
    (tmp_path / "open").chmod(0o666)
    (tmp_path / "shut").touch()
    (tmp_path / "shut").chmod(0o400)
    changes = list(host_files.apply(mine(path=f"{tmp_path}/*", mode="0640")))
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("open", "shut")] == [0o640, 0o400]
    assert len(changes) == 1
    assert list(host_files.apply(mine(path=f"{tmp_path}/*", mode="0640"))) == []


def test_check_mode_changes_nothing_and_says_what_would(tmp_path: Path) -> None:
    target = tmp_path / "open"
    target.touch()
    target.chmod(0o666)
    assert list(host_files.apply(mine(path=str(target), mode="0640"), check=True))
    assert target.stat().st_mode & 0o777 == 0o666


def test_links_and_what_is_excluded_stay(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal/a").touch()
    (tmp_path / "journal/a").chmod(0o644)
    os.symlink(tmp_path / "journal/a", tmp_path / "link")
    wanted = mine(path=f"{tmp_path}/**", mode="0600", exclude=[f"{tmp_path}/journal"])
    assert list(host_files.apply(wanted)) == []


def test_lines_of_rules_that_are_off_are_left_out() -> None:
    wanted = {"path": "/x", "lines": {"one": "a = 1", "two": "b = 2"}}
    assert host_files.text(wanted, ["two"]) == host_files.HEADER + "b = 2\n"


def test_settings_are_there_once() -> None:
    text = "# UMASK is said below\nUMASK\t022\nOTHER 1\nUMASK 077\n"
    once = host_files.with_values(text, {"UMASK": "027", "NEW": 3}, "\t")
    assert once == "# UMASK is said below\nUMASK\t027\nOTHER 1\nNEW\t3\n"
    assert host_files.with_values(once, {"UMASK": "027", "NEW": 3}, "\t") == once


def test_options_of_mounts_are_added_to_their_line() -> None:
    fstab = "# /tmp is old\nUUID=1 /tmp ext4 defaults,nodev 0 2\n"
    assert mount_options.with_options(fstab, "/tmp", "ext4", ["nodev", "noexec"]) == (
        "# /tmp is old\nUUID=1\t/tmp\text4\tdefaults,nodev,noexec\t0\t2\n"
    )


def test_a_tmpfs_without_a_line_gets_one_and_a_disk_does_not() -> None:
    assert mount_options.with_options("", "/dev/shm", "tmpfs", ["noexec"]) == (
        "tmpfs\t/dev/shm\ttmpfs\tdefaults,noexec\t0\t0\n"
    )
    assert mount_options.with_options("", "/home", "ext4", ["nodev"]) == ""


def test_a_path_becomes_a_tmpfs_once() -> None:
    once = mount_options.with_tmpfs("", "/tmp", "25%", ["noexec"])
    assert once == "tmpfs\t/tmp\ttmpfs\tmode=1777,size=25%,noexec\t0\t0\n"
    assert mount_options.with_tmpfs(once, "/tmp", "25%", ["noexec"]) == once
    assert mount_options.with_tmpfs("UUID=1 /tmp ext4\n", "/tmp", "25%", []) == "UUID=1 /tmp ext4\n"


def test_mounts_are_read_by_path() -> None:
    mounts = mount_options.parse_mounts("tmpfs /dev/shm tmpfs rw,nosuid,nodev 0 0\n")
    assert mounts == {"/dev/shm": (["rw", "nosuid", "nodev"], "tmpfs")}


def test_an_exception_is_overdue_the_day_after_its_review(tmp_path: Path) -> None:
    (waiver,) = hardening.waivers(exceptions(tmp_path))
    assert not waiver.overdue(datetime.date(2030, 1, 31))
    assert waiver.overdue(datetime.date(2030, 2, 1))

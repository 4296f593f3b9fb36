"""What events add up to. The events here are written by hand; test_runner.py takes them from real runs."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mayafleet.tally import Counts, Tally, message_of, planned_roles

START = datetime.fromisoformat("2026-01-01T00:00:00+00:00")


def event(kind: str, second: float = 0, **data: Any) -> dict[str, Any]:
    return {"event": kind, "created": (START + timedelta(seconds=second)).isoformat(), "event_data": data}


def feed(*events: dict[str, Any]) -> tuple[Tally, list[str]]:
    """A tally of the events, and `host role` of every stage it told, in order."""
    tally, stages = Tally(), []
    for one in events:
        stages += [f"{stage.host} {stage.role}{' !' * bool(stage.stopped_at)}" for stage in tally.add(one)]
    return tally, stages


def result(kind: str, host: str, role: str = "docker", **data: Any) -> list[dict[str, Any]]:
    data = {"host": host, "role": role, "task": "do it"} | data
    return [event("runner_on_start", **data), event(f"runner_on_{kind}", **data)]


def test_time_goes_to_the_role_that_runs_and_handlers_count_for_theirs() -> None:
    tally, stages = feed(
        event("playbook_on_task_start", 0, task_action="gather_facts"),
        *result("ok", "a", "", task_action="gather_facts"),
        event("playbook_on_task_start", 3, role="docker"),
        *result("ok", "a"),
        event("playbook_on_task_start", 10, role="tls"),
        *result("ok", "a", "tls"),
        event("playbook_on_handler_task_start", 11, role="docker"),
        *result("ok", "a"),
        event("playbook_on_stats", 15, processed={"a": 1}, ok={"a": 4}),
    )
    assert tally.role_seconds == {"facts": 3, "docker": 7 + 4, "tls": 1}
    assert stages == ["a facts", "a docker", "a tls", "a docker (handlers)"]
    assert tally.roles_done == 2


def test_a_rescued_failure_is_none() -> None:
    tally, stages = feed(
        event("playbook_on_task_start", 0, role="docker"),
        *result("failed", "a", res={"msg": "no such package"}),
        *result("failed", "b", res={"msg": "disk full"}),
        *result("ok", "a"),
        event("playbook_on_play_start", 1),
    )
    assert stages == ["a docker", "b docker !"]
    assert (tally.hosts["a"].failed, tally.hosts["b"].failed) == (0, 1)
    assert [(failure.host, failure.message) for failure in tally.failures] == [("b", "disk full")]


def test_an_ignored_failure_counts_as_ok_as_in_ansible() -> None:
    tally, _ = feed(*result("failed", "a", ignore_errors=True, res={"msg": "no"}))
    assert tally.hosts["a"] == Counts(ok=1)
    assert not tally.failures


def test_a_change_that_no_log_hides_is_counted() -> None:
    (_, hidden) = result("ok", "a", res={"censored": "hidden"})
    assert feed(hidden | {"stdout": "changed: [a]"})[0].hosts["a"].changed == 1
    assert feed(hidden | {"stdout": "ok: [a]"})[0].hosts["a"].changed == 0


def test_facts_alone_are_no_work() -> None:
    facts = result("ok", "a", "", task_action="gather_facts")
    assert not feed(*facts)[0].worked
    assert feed(*facts, *result("skipped", "a"))[0].worked


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"msg": "plain"}, "plain"),
        ({"msg": ["one", "two"]}, "one\ntwo"),
        ({"msg": "non-zero return code", "rc": 2, "stderr": "no space\n"}, "non-zero return code\nno space"),
        ({"msg": "MODULE FAILURE", "rc": 1, "module_stdout": "Traceback"}, "MODULE FAILURE\nTraceback"),
        ({"results": [{"item": "x"}, {"item": "y", "failed": True, "msg": "bad"}]}, "y: bad"),
        ({"censored": "hidden"}, "The result is hidden (no_log)."),
        ({}, "no message"),
    ],
)  # fmt: skip
def test_message_says_why(told: dict[str, Any], message: str) -> None:
    assert message_of(told) == message


def test_planned_roles_follow_imports_and_tags(tmp_path: Path) -> None:
    (tmp_path / "site.yml").write_text(
        "- {import_playbook: hosts.yml}\n- {hosts: gpu, roles: [docker, {role: tls, tags: tls}]}\n"
    )
    (tmp_path / "hosts.yml").write_text("- {hosts: all, roles: [{role: base, tags: [base, always]}]}\n")
    site = tmp_path / "site.yml"
    assert planned_roles(site) == ["base", "docker", "tls"]
    assert planned_roles(site, tags=["tls"]) == ["base", "tls"]
    assert planned_roles(site, skip_tags=["base"]) == ["docker", "tls"]


def test_a_playbook_that_does_not_parse_is_left_to_ansible(tmp_path: Path) -> None:
    (tmp_path / "site.yml").write_text("- [")
    assert planned_roles(tmp_path / "site.yml") == []

"""Real playbooks run by the real ansible-runner, over local connections and to a port nobody listens on."""

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from mayafleet import project, runner
from mayafleet.checks import Level
from mayafleet.console import progress
from mayafleet.errors import ExitCode, FleetError
from mayafleet.runner import RunResult
from mayafleet.tally import Tally

CANARY = "canary-4e1f"

HOSTS = {
    "all": {
        "vars": {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        },
        "children": {
            "eu_test": {"hosts": {"good": {}, "broken": {}}, "vars": {"region": "eu_test"}},
            "me_test": {
                "hosts": {
                    "dead": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
                },
                "vars": {"region": "me_test"},
            },
        },
    }
}
SITE = """
- name: One
  hosts: all
  gather_subset: ["!all", "!min", env]
  roles: [{role: alpha, tags: alpha}]
- name: Two
  hosts: all
  gather_facts: false
  roles: [omega]
"""
ALPHA = """
- name: Write a secret
  ansible.builtin.copy:
    content: "{{ lookup('env', 'FLEET_TEST_SECRET') }}"
    dest: "{{ playbook_dir }}/secret-{{ inventory_hostname }}"
    mode: "0600"
  no_log: true
  diff: false
- name: Gather again, the environment too
  ansible.builtin.setup: {gather_subset: ["!all", "!min", env]}
- name: Ignore a failure
  ansible.builtin.command: /bin/false
  changed_when: false
  ignore_errors: true
- name: Be rescued
  block:
    - name: Break
      ansible.builtin.fail: {msg: to be rescued}
  rescue:
    - name: Mend
      ansible.builtin.debug: {msg: fine}
"""
OMEGA = """
- name: Fail in a loop
  ansible.builtin.command: sh -c 'echo no space on {{ item }} >&2; exit 3'
  changed_when: false
  loop: [sda, sdb]
  when: inventory_hostname == 'broken'
- name: Export
  ansible.builtin.set_stats:
    per_host: true
    data:
      fleet_not_run: ["grafana: no repository here"]
      fleet_preflight:
        - {id: memory, level: warn, found: 16 GB, wanted: 32 GB, mend: Rent more.}
        - {id: kernel, level: pass, found: "6.1", wanted: "", mend: ""}
- name: Export how host keys are treated
  ansible.builtin.debug: {msg: "host keys are checked: {{ lookup('config', 'HOST_KEY_CHECKING') }}"}
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an inventory, two roles and playbooks."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "hosts.yml").write_text(yaml.safe_dump(HOSTS))
    for role, tasks in (("alpha", ALPHA), ("omega", OMEGA)):
        (folder / "roles" / role / "tasks").mkdir(parents=True)
        (folder / "roles" / role / "tasks" / "main.yml").write_text(tasks)
    (folder / "site.yml").write_text(SITE)
    (folder / "quick.yml").write_text(
        "- {hosts: all, gather_facts: false, pre_tasks: [{ansible.builtin.ping: }], roles: [omega]}\n"
    )
    (folder / "elsewhere.yml").write_text("- {hosts: monitoring, roles: [omega]}\n")
    (folder / "lacking.yml").write_text("- {hosts: all, roles: [no_such_role]}\n")
    return folder


def run(fleet: Path, playbook: str, **options: Any) -> tuple[RunResult, str]:
    """Result of a run, and what it printed where there is no terminal."""
    out = io.StringIO()
    options.setdefault("runs_dir", fleet / "runs")
    console = Console(file=out, width=100)
    return runner.run_playbook(
        str(fleet / playbook), fleet / "hosts.yml", console=console, **options
    ), out.getvalue()


@pytest.fixture(scope="module")
def whole(fleet: Path) -> tuple[RunResult, str]:
    """One run over a good, a failing and an unreachable host, with a secret in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEET_TEST_SECRET", CANARY)
        return run(fleet, "site.yml")


def test_counts_are_ansibles(whole: tuple[RunResult, str]) -> None:
    hosts = whole[0].hosts
    # facts, copy, setup, ignored failure, mended; then set_stats and debug
    assert (hosts["good"].ok, hosts["good"].failed, hosts["good"].skipped) == (7, 0, 1)
    assert (hosts["broken"].ok, hosts["broken"].failed) == (5, 1)
    assert (hosts["dead"].unreachable, hosts["dead"].failed) == (1, 0)
    assert hosts["good"].seconds > 0
    assert set(whole[0].role_seconds) == {"facts", "alpha", "omega"}


def test_a_failure_outweighs_an_unreachable_host(whole: tuple[RunResult, str]) -> None:
    assert whole[0].exit_code == ExitCode.HOST_FAILED


def test_failures_say_where_and_why(whole: tuple[RunResult, str]) -> None:
    failures = {failure.host: failure for failure in whole[0].failures}
    assert set(failures) == {"broken", "dead"}
    assert (failures["broken"].role, failures["broken"].task) == ("omega", "Fail in a loop")
    assert "sda: non-zero return code\nno space on sda" in failures["broken"].message
    assert failures["dead"].unreachable
    assert "Connection refused" in failures["dead"].message


def test_what_was_left_undone_is_collected_per_host(whole: tuple[RunResult, str]) -> None:
    assert whole[0].not_run == {"good": ["grafana: no repository here"]}


def test_warnings_of_preflight_are_shown_with_every_run(whole: tuple[RunResult, str]) -> None:
    assert [(check.id, check.level) for check in whole[0].preflight["good"]] == [
        ("memory", Level.WARN),
        ("kernel", Level.PASS),
    ]
    assert "warning: memory: 16 GB; wanted: 32 GB. Rent more. (good)" in whole[1]
    assert "kernel:" not in whole[1]


def test_log_has_a_line_per_role_and_host(whole: tuple[RunResult, str]) -> None:
    log = whole[1]
    assert "site: 3 of 3 hosts: " in log
    assert re.search(r"^good  alpha  ok 4  changed 1  \d+\.\d s$", log, re.MULTILINE)
    assert re.search(r"^broken  omega  .* s  stopped at: Fail in a loop$", log, re.MULTILINE)
    assert re.search(r"^dead  facts  .* stopped at: Gathering Facts$", log, re.MULTILINE)
    assert "not run: grafana: no repository here (good)" in log
    assert "no space on sda" in log
    assert f"kept in {whole[0].run_dir}" in log
    assert "\x1b" not in log


def test_result_is_machine_readable(whole: tuple[RunResult, str]) -> None:
    told = json.loads((whole[0].run_dir / "result.json").read_text())
    assert told["exit_code"] == 3
    assert told["hosts"]["dead"]["unreachable"] == 1
    assert told["not_run"] == {"good": ["grafana: no repository here"]}
    assert set(told["role_seconds"]) == {"facts", "alpha", "omega"}
    assert {failure["host"] for failure in told["failures"]} == {"broken", "dead"}


def test_run_folder_holds_no_secret_and_is_private(whole: tuple[RunResult, str], fleet: Path) -> None:
    assert CANARY in (fleet / "secret-good").read_text()  # the run did have it
    paths = [whole[0].run_dir, *whole[0].run_dir.rglob("*")]
    files = [path for path in paths if path.is_file()]
    assert any(path.parent.name == "job_events" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o700}


def test_unreachable_alone_and_host_keys_stay_checked(fleet: Path) -> None:
    result, _ = run(fleet, "quick.yml", limit="good:dead")
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "host keys are checked: True" in (result.run_dir / "stdout").read_text()


def test_variables_outrank_the_inventory_and_keep_their_types(fleet: Path) -> None:
    (fleet / "told.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n    - ansible.builtin.assert:\n"
        "        that: [region == 'elsewhere', force is boolean, seconds == 120, reason == 'a \"new\" one']\n"
    )
    told = {"region": "elsewhere", "force": True, "seconds": 120, "reason": 'a "new" one'}
    assert run(fleet, "told.yml", limit="good", variables=told)[0].exit_code == ExitCode.OK
    assert run(fleet, "told.yml", limit="good", variables=told | {"seconds": 1})[0].exit_code != ExitCode.OK


def test_verification_has_its_own_code(fleet: Path) -> None:
    result, _ = run(fleet, "quick.yml", limit="broken", failed_code=ExitCode.VERIFY_FAILED)
    assert result.exit_code == ExitCode.VERIFY_FAILED


def test_check_changes_nothing_and_diff_is_shown(fleet: Path) -> None:
    (fleet / "write.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n    - name: Write\n"
        "      ansible.builtin.copy: {content: 'new line\\n', dest: '{{ playbook_dir }}/written'}\n"
    )
    result, log = run(fleet, "write.yml", limit="good", check=True, diff=True)
    assert (result.exit_code, result.hosts["good"].changed) == (ExitCode.OK, 1)
    assert "+new line" in log
    assert not (fleet / "written").exists()


@pytest.mark.parametrize(
    ("playbook", "options", "code", "message"),
    [
        ("site.yml", {"limit": "nobody"}, ExitCode.NOTHING_MATCHED, "--limit names 'nobody'"),
        ("site.yml", {"regions": ("us",)}, ExitCode.NOTHING_MATCHED, "no region 'us'"),
        ("elsewhere.yml", {}, ExitCode.NOTHING_MATCHED, "Playbook elsewhere ran no task"),
        (
            "site.yml",
            {"tags": ["nothing"], "limit": "good"},
            ExitCode.NOTHING_MATCHED,
            "Playbook site ran no task",
        ),
        ("lacking.yml", {}, ExitCode.USAGE, "Ansible stopped: the role 'no_such_role' was not found"),
        ("absent.yml", {}, ExitCode.USAGE, "There is no playbook"),
    ],
)
def test_a_run_that_touches_no_host_is_a_failure(
    fleet: Path, playbook: str, options: dict[str, Any], code: ExitCode, message: str
) -> None:
    with pytest.raises(FleetError, match=message) as caught:
        run(fleet, playbook, **options)
    assert caught.value.exit_code == code


def test_a_region_narrows_a_run_and_the_newest_runs_are_kept(fleet: Path, tmp_path: Path) -> None:
    old = [tmp_path / f"20200101T0000{second:02d}Z-site" for second in range(25)]
    for folder in [*old, tmp_path / "notes"]:
        folder.mkdir()
    result, _ = run(fleet, "quick.yml", limit="good:dead", regions=("eu_test",), runs_dir=tmp_path)
    assert result.exit_code == ExitCode.OK
    assert list(result.hosts) == ["good"]
    kept = {path for path in tmp_path.iterdir() if path.name != "notes"}
    assert kept == {*old[-19:], result.run_dir}
    assert (tmp_path / "notes").exists()


def test_an_interrupt_stops_ansible_and_says_what_to_do(fleet: Path, tmp_path: Path) -> None:
    started = tmp_path / "pid"
    (tmp_path / "nap.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n    - name: Nap\n"
        f"      ansible.builtin.shell: echo $$ > {started}.new && mv {started}.new {started} && sleep 120\n"
    )
    command = [sys.executable, "-c", "from mayafleet.cli import main; main()", "provision", "--limit", "good"]
    command += [
        "-i",
        str(fleet / "hosts.yml"),
        "--playbook",
        str(tmp_path / "nap.yml"),
        "--runs-dir",
        str(tmp_path / "runs"),
    ]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=project.root())
    try:
        while not started.exists():
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        printed, _ = run.communicate(timeout=30)
    finally:
        run.kill()
    assert run.returncode == ExitCode.INTERRUPTED
    assert "hosts may be half provisioned. Running again is safe" in printed
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert json.loads((run_dir / "result.json").read_text())["exit_code"] == 130
    assert "User interrupted execution" in (run_dir / "stdout").read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def ansibles_of(folder: Path) -> list[bytes]:
    """Command lines of running processes that name the folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_bytes())
    return [line for line in lines if bytes(folder) in line]


def test_ansible_does_not_go_on_when_nobody_follows_it(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n    - ansible.builtin.command: sleep 60\n"
        f"    - ansible.builtin.file: {{path: {tmp_path / 'went_on'}, state: touch}}\n"
    )

    def fail(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(Tally, "add", fail)
    with pytest.raises(RuntimeError):
        run(fleet, str(tmp_path / "two.yml"), limit="good", runs_dir=tmp_path / "runs")
    assert ansibles_of(tmp_path) == []
    assert not (tmp_path / "went_on").exists()


def test_a_terminal_shows_hosts_and_roles_live() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    tally = Tally()
    with progress(tally, ["docker", "tls"], diff=False, console=console) as show:
        for kind in ("playbook_on_task_start", "runner_on_start"):
            data = {"host": "fra1", "role": "tls", "task": "Make a certificate"}
            event = {"event": kind, "created": "2026-01-01T00:00:00+00:00", "event_data": data}
            show(event, tally.add(event))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert re.search(r"fra1 +tls +Make a certificate +ok 0 +changed 0 +failed 0", shown)
    assert "0/2 roles" in shown

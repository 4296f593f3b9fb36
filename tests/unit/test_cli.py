"""The command line: what it prints and how it exits."""

import json
import sys
from pathlib import Path

import jwt
import pytest

from mayafleet import cli, runner, speech, tokens, versions
from mayafleet.checks import Check, Level
from mayafleet.errors import EXIT_CODE_MEANINGS, ExitCode
from mayafleet.tally import Counts, Failure


def mayafleet(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["mayafleet", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_help_lists_every_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(EXIT_CODE_MEANINGS) == set(ExitCode)
    assert mayafleet(monkeypatch, "--help") == ExitCode.OK
    shown = " ".join(capsys.readouterr().out.split())
    for code, meaning in EXIT_CODE_MEANINGS.items():
        assert f"{code:d} {meaning}" in shown
        assert f"{code:<6d}{meaning}" in (ExitCode.__doc__ or "")


def test_an_error_is_a_sentence_and_a_next_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert mayafleet(monkeypatch, "provision", "-i", str(tmp_path / "absent")) == ExitCode.USAGE
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"Error: There is no inventory {tmp_path / 'absent'}."
    assert second.startswith("Inventories of this project: ")


def test_wrong_usage_is_two(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mayafleet(monkeypatch, "provision") == ExitCode.USAGE
    assert mayafleet(monkeypatch, "no-such-verb") == ExitCode.USAGE


def test_a_bug_shows_its_traceback_only_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of cheese")

    monkeypatch.setattr(runner, "run_playbook", fail)
    monkeypatch.delenv("MAYAFLEET_DEBUG", raising=False)
    assert mayafleet(monkeypatch, "verify", "-i", "x") == ExitCode.INTERNAL
    printed = capsys.readouterr().err
    assert "Internal error: RuntimeError: out of cheese" in printed
    assert "Traceback" not in printed
    monkeypatch.setenv("MAYAFLEET_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["mayafleet", "verify", "-i", "x"])
    with pytest.raises(RuntimeError):
        cli.main()


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_playbook", interrupt)
    assert mayafleet(monkeypatch, "provision", "-i", "x") == ExitCode.INTERRUPTED


def test_jwt_issue_prints_a_token_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert mayafleet(monkeypatch, "jwt", "init", str(tmp_path / "keys")) == ExitCode.OK
    capsys.readouterr()
    key = str(tmp_path / "keys" / "private.pem")
    given = ("--key", key, "--issuer", "i", "--audience", "a", "--subject", "s", "--ttl", "2h")
    assert mayafleet(monkeypatch, "jwt", "issue", *given) == ExitCode.OK
    printed = capsys.readouterr().out
    claims = jwt.decode(printed.rstrip("\n"), options={"verify_signature": False})
    assert (claims["sub"], claims["exp"] - claims["iat"], claims["scope"]) == ("s", 7200, "speak")


def test_jwt_issue_names_what_the_token_allows_and_for_whom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    private, _ = tokens.create_key_pair(tmp_path)
    given = ("jwt", "issue", "--key", str(private), "--issuer", "i", "--audience", "a", "--subject", "s")
    chosen = ("--scope", "speak", "--scope", "jobs", "--tenant", "acme")
    assert mayafleet(monkeypatch, *given, *chosen) == ExitCode.OK
    claims = jwt.decode(capsys.readouterr().out.rstrip("\n"), options={"verify_signature": False})
    assert (claims["scope"], claims["tenant"]) == ("speak jobs", "acme")
    assert mayafleet(monkeypatch, *given, "--scope", "fly") == ExitCode.USAGE
    assert "'fly'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("jwt", "issue", "--subject", "s", "--key", "k"), "needs a key, an issuer and an audience"),
        (("say", "hello"), "not clear which service"),
        (("say", "hello", "--url", "https://x", "-i", "y", "--token-file", "z"), "not clear which service"),
        (
            ("say", "hello", "--url", "https://x", "--token-file", "absent"),
            "token file absent cannot be read",
        ),
    ],
)
def test_half_given_options_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert mayafleet(monkeypatch, *arguments) == ExitCode.USAGE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("span", ["5", "0m", "1w", "-1h", "99999999d"])
def test_a_time_span_is_a_number_and_a_unit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, span: str
) -> None:
    private, _ = tokens.create_key_pair(tmp_path)
    given = ("--key", str(private), "--issuer", "i", "--audience", "a", "--subject", "s", "--ttl", span)
    assert mayafleet(monkeypatch, "jwt", "issue", *given) == ExitCode.USAGE
    assert f"'{span}' is not a time span" in capsys.readouterr().err


@pytest.fixture
def fleet(tmp_path: Path) -> tuple[str, str]:
    """-i and an inventory with one host that knows a folder for its clients' authority."""
    hosts = {"gpu": {"hosts": {"gpu1": {"gateway_client_authority_dir": str(tmp_path / "clients")}}}}
    (tmp_path / "hosts.yml").write_text(json.dumps(hosts))
    return "-i", str(tmp_path / "hosts.yml")


def test_certificates_are_issued_listed_and_revoked(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    fleet: tuple[str, str],
) -> None:
    told: list[str] = []

    def run(playbook: str, *_: object, **__: object) -> runner.RunResult:
        told.append(playbook)
        return runner.RunResult(playbook, False, ExitCode.UNREACHABLE, tmp_path, 1.0)

    monkeypatch.setattr(runner, "run_playbook", run)
    for name in ("alice", "bob"):
        assert mayafleet(monkeypatch, "cert", "issue", name, "--scope", "jobs", *fleet) == ExitCode.OK
        assert str(tmp_path / "clients" / "clients" / f"{name}.pem") in capsys.readouterr().out
    assert mayafleet(monkeypatch, "cert", "revoke", "alice", "--no-push", *fleet) == ExitCode.OK
    assert "Hosts accept it until" in capsys.readouterr().out
    assert not told
    # The hosts are told; where one is not, that is no success.
    assert mayafleet(monkeypatch, "cert", "revoke", "bob", *fleet) == ExitCode.UNREACHABLE
    assert "is still accepted" in capsys.readouterr().err
    assert told == ["revoke"]
    assert mayafleet(monkeypatch, "cert", "list", "--json", *fleet) == ExitCode.OK
    listed = json.loads(capsys.readouterr().out)
    found = [(one["name"], one["scopes"], one["state"]) for one in listed["certificates"]]
    assert found == [("alice", ["jobs"], "revoked"), ("bob", ["jobs"], "revoked")]
    assert mayafleet(monkeypatch, "cert", "list", *fleet) == ExitCode.OK
    assert "revoked" in capsys.readouterr().out


def test_certificates_need_one_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "hosts.yml").write_text(json.dumps({"gpu": {"hosts": {"gpu1": {}}}}))
    assert mayafleet(monkeypatch, "cert", "list", "-i", str(tmp_path / "hosts.yml")) == ExitCode.USAGE
    assert "name no folders for the authority of clients" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "path", "audio_format"),
    [
        ((), "speech.wav", "wav"),
        (("-o", "a.mp3"), "a.mp3", "mp3"),
        (("-o", "a.sound"), "a.sound", "wav"),
        (("--format", "opus"), "speech.opus", "opus"),
        (("-o", "a.wav", "--format", "pcm"), "a.wav", "pcm"),
    ],
)
def test_say_takes_the_format_from_the_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    arguments: tuple[str, ...], path: str, audio_format: str,
) -> None:  # fmt: skip
    asked: list[object] = []

    def say(text: str, connection: speech.Connection, path: Path, **options: object) -> speech.Spoken:
        asked.extend([text, connection.url, str(path), options["audio_format"]])
        return speech.Spoken(path, "recorded", "joe", "hit", ttfa=0.25, elapsed=1.0, duration=4.0)

    monkeypatch.setattr(speech, "say", say)
    (tmp_path / "token").write_text("abc\n")
    given = ("say", "hello", "--url", "https://fra1", "--token-file", str(tmp_path / "token"), *arguments)
    assert mayafleet(monkeypatch, *given) == ExitCode.OK
    assert asked == ["hello", "https://fra1", path, audio_format]
    shown = capsys.readouterr().out.split()
    for part in ("0.250", "recorded", "joe", "hit", "4.00", path):
        assert part in shown


@pytest.fixture
def preflight_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """What a run of playbook preflight was asked for; it finds one host unfit and another unreachable."""
    asked: list[object] = []

    def run_playbook(playbook: str, inventory: list[Path], **options: object) -> runner.RunResult:
        asked.extend([playbook, inventory, options["limit"], options["regions"], options["failed_code"]])
        unfit = [Check("gpu_count", Level.FAIL, "1 on the PCI bus", "2", "Power it off and on.")]
        failures = [
            Failure("fra-1", "preflight", "Stop at a host that is not fit", "..."),
            Failure("fra-2", "facts", "Gathering Facts", "Connection refused", unreachable=True),
        ]
        hosts = {"fra-1": Counts(failed=1), "fra-2": Counts(unreachable=1)}
        return runner.RunResult(
            "preflight", False, ExitCode.UNFIT, tmp_path, 1.0, hosts,
            preflight={"fra-1": unfit}, failures=failures,
        )  # fmt: skip

    monkeypatch.setattr(runner, "run_playbook", run_playbook)
    return asked


def test_preflight_shows_each_host_with_the_way_to_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], preflight_run: list[object]
) -> None:
    given = ("preflight", "-i", "x", "fra-1", "fra-2", "--region", "eu")
    assert mayafleet(monkeypatch, *given) == ExitCode.UNFIT
    assert preflight_run == ["preflight", [Path("x")], "fra-1,fra-2", ["eu"], ExitCode.UNFIT]
    shown = " ".join(capsys.readouterr().out.split())
    assert "fra-1: fail" in shown
    assert "gpu_count fail 1 on the PCI bus wanted: 2 Power it off and on." in shown
    assert "reachable fail Connection refused" in shown


def test_preflight_json_is_one_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], preflight_run: list[object]
) -> None:
    assert mayafleet(monkeypatch, "preflight", "-i", "x", "--json") == ExitCode.UNFIT
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 9
    assert [check["id"] for check in document["hosts"]["fra-1"]["checks"]] == ["reachable", "gpu_count"]
    assert document["hosts"]["fra-2"]["level"] == "fail"


def test_preflight_takes_hosts_or_a_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], preflight_run: list[object]
) -> None:
    assert mayafleet(monkeypatch, "preflight", "-i", "x", "fra-1", "--limit", "fra-2") == ExitCode.USAGE
    assert preflight_run == []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    """What a run of a playbook was asked for; it succeeds."""
    seen: dict[str, object] = {}

    def run_playbook(playbook: str, inventory: list[Path], **options: object) -> runner.RunResult:
        seen.update(options, playbook=playbook)
        return runner.RunResult(playbook, False, ExitCode.OK, tmp_path, 1.0)

    monkeypatch.setattr(runner, "run_playbook", run_playbook)
    return seen


def test_drain_hands_over_why_and_for_how_long(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, object]
) -> None:
    given = ("drain", "-i", "x", "fra-1", "fra-2", "--reason", "new disk", "--timeout", "2m", "--force")
    assert mayafleet(monkeypatch, *given) == ExitCode.OK
    assert (asked["playbook"], asked["limit"]) == ("drain", "fra-1,fra-2")
    assert asked["variables"] == {
        "drain_reason": "new disk",
        "drain_timeout_seconds": 120,
        "drain_force": True,
    }


@pytest.mark.parametrize("verb", ["drain", "undrain", "upgrade", "rollback"])
def test_no_verb_meets_the_whole_fleet_by_an_oversight(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: dict[str, object],
    verb: str,
) -> None:
    assert mayafleet(monkeypatch, verb, "-i", "x") == ExitCode.USAGE
    assert f"not said which hosts to {verb}" in capsys.readouterr().err
    assert not asked
    assert mayafleet(monkeypatch, verb, "-i", "x", "--region", "eu") == ExitCode.OK
    assert asked["regions"] == ["eu"]


@pytest.mark.parametrize(("options", "variables"), [((), None), (("--kernel",), {"upgrade_kernel": True})])
def test_upgrade_takes_the_kernel_along_only_when_told(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], options: tuple[str, ...], variables: object
) -> None:
    """An inventory that says upgrade_kernel is not overruled."""
    assert mayafleet(monkeypatch, "upgrade", "-i", "x", "fra-1", "--check", *options) == ExitCode.OK
    assert (asked["playbook"], asked["limit"], asked["check"]) == ("upgrade", "fra-1", True)
    assert asked["variables"] == variables


def test_upgrade_refuses_an_unfit_bundle_and_rollback_takes_what_was_there(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, object]
) -> None:
    assert mayafleet(monkeypatch, "upgrade", "-i", "x", "fra-1") == ExitCode.OK
    assert asked.pop("approve") is versions.require_fit
    assert mayafleet(monkeypatch, "rollback", "-i", "x", "fra-1") == ExitCode.OK
    assert (asked["playbook"], asked["limit"]) == ("rollback", "fra-1")
    assert "approve" not in asked


# --- gpu-health ---------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run of playbook gpu_health that finds one host unwell and another well."""
    spent = {"id": "xid 79", "level": "fail", "found": "1x", "wanted": "none", "mend": "Reboot it, once."}
    fine = {"id": "clocks", "level": "pass", "found": "45 C", "wanted": "", "mend": ""}
    gpu = {"index": 0, "name": "NVIDIA A10"}
    documents = {
        "fra-1": {"level": "fail", "checks": [], "gpus": [{**gpu, "checks": [fine, spent]}]},
        "fra-2": {"level": "pass", "checks": [], "gpus": [{**gpu, "checks": [fine]}]},
    }

    def run(playbook: str, *_: object, **options: object) -> runner.RunResult:
        assert (playbook, options["limit"]) == ("gpu_health", "fra-1,fra-2")
        return runner.RunResult("gpu_health", False, ExitCode.OK, tmp_path, 1.0, gpus=documents)

    monkeypatch.setattr(runner, "run_playbook", run)


def test_gpu_health_shows_what_to_do_and_ends_with_unfit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gpu_run: None
) -> None:
    assert mayafleet(monkeypatch, "gpu-health", "-i", "x", "fra-1", "fra-2") == ExitCode.UNFIT
    shown = capsys.readouterr().out
    for told in ("fra-1: fail", "0 NVIDIA A10", "xid 79", "Reboot it, once.", "fra-2: pass"):
        assert told in shown


def test_gpu_health_json_is_one_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gpu_run: None
) -> None:
    assert mayafleet(monkeypatch, "gpu-health", "-i", "x", "--json", "fra-1", "fra-2") == ExitCode.UNFIT
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == ExitCode.UNFIT
    assert document["hosts"]["fra-1"]["gpus"][0]["checks"][1]["id"] == "xid 79"

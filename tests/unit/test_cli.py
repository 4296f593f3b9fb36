"""The command line: what it prints and how it exits."""

import sys
from pathlib import Path

import jwt
import pytest

from mayafleet import cli, runner, speech, tokens
from mayafleet.errors import EXIT_CODE_MEANINGS, ExitCode


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

"""Asks a host for speech as any client would, over TLS and with a token, and measures the answer."""

from __future__ import annotations

import getpass
import math
import os
import re
import ssl
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mayafleet import inventory as inventories
from mayafleet import project, tokens
from mayafleet.errors import ExitCode, FleetError

MODEL = "tts-1"
FORMATS = ("wav", "mp3", "flac", "opus", "pcm")
CONNECT_TIMEOUT, READ_TIMEOUT = 10, 120
SAMPLE_BYTES = 2  # pcm is 16 bit, mono
KEY_VARIABLES = ("fleet_jwt_key", "fleet_jwt_key_file")  # one is enough; the first, encrypted, counts
SIGNING_VARIABLES = (*KEY_VARIABLES, "fleet_jwt_issuer", "fleet_jwt_audience")
# Without fleet_ca_file, the authorities of this system are trusted.
OPTIONAL_VARIABLES = ("fleet_ca_file", *KEY_VARIABLES)


@dataclass(frozen=True)
class Connection:
    """Where a host's speech service answers, whom to trust there, and the token or certificate to show."""

    url: str
    token: str | None
    ca_file: Path | None = None
    certificate: Path | None = None
    """With its key in the same file."""

    def __post_init__(self) -> None:
        if not self.url.startswith("https://"):
            raise FleetError(
                f"{self.url!r} is not an https:// address, and a token must not travel in the clear.",
                "Set fleet_url for the host, or --url.",
                ExitCode.USAGE,
            )
        if self.ca_file and not self.ca_file.is_file():
            raise FleetError(
                f"The CA file {self.ca_file} does not exist.",
                "Set fleet_ca_file for the host, or --ca.",
                ExitCode.USAGE,
            )
        if self.certificate:
            _require_pair(self.certificate)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc


@dataclass(frozen=True)
class Spoken:
    """What came back, and how fast. Times are seconds, as the client saw them."""

    path: Path
    engine: str
    voice: str
    cache: str
    ttfa: float
    """From sending the request to the first byte of audio; a WAV header is not audio."""
    elapsed: float
    duration: float
    """Of the audio; not a number where neither the audio nor the service says it (a compressed stream)."""

    @property
    def rtf(self) -> float:
        """Seconds of waiting for a second of audio, from sending the request to the last byte."""
        return self.elapsed / self.duration if self.duration else math.nan


@dataclass(frozen=True)
class Signing:
    """What makes tokens for a host."""

    key: Ed25519PrivateKey
    issuer: str
    audience: str


def connection(inventory: Path | Sequence[Path], host: str | None = None) -> Connection:
    """How to reach a host, out of its variables fleet_*, with a fresh token. No name: the only gpu host."""
    values = _host_variables(inventory, host, ("fleet_url", "fleet_ca_file", *SIGNING_VARIABLES))
    signer = _signing(values)
    subject = f"operator:{getpass.getuser()}"
    token = tokens.issue(signer.key, issuer=signer.issuer, audience=signer.audience, subject=subject)
    ca_file = values.get("fleet_ca_file")
    return Connection(values["fleet_url"], token, project.root() / ca_file if ca_file else None)


def signing(inventory: Path | Sequence[Path], host: str | None = None) -> Signing:
    """Key, issuer and audience that a host's service accepts, out of its variables fleet_jwt_*."""
    return _signing(_host_variables(inventory, host, SIGNING_VARIABLES))


def _signing(values: dict[str, str]) -> Signing:
    if pem := values.get("fleet_jwt_key"):
        key = tokens.parse_key(pem.encode(), "The variable fleet_jwt_key")
    elif file := values.get("fleet_jwt_key_file"):
        key = tokens.load_key(project.root() / file)
    else:
        raise FleetError(
            "The inventory has neither fleet_jwt_key nor fleet_jwt_key_file, so no token can be signed.",
            "`mayafleet secrets init` makes the first.",
            ExitCode.USAGE,
        )
    return Signing(key, values["fleet_jwt_issuer"], values["fleet_jwt_audience"])


def say(
    text: str,
    connection: Connection,
    path: Path,
    *,
    audio_format: str = "wav",
    voice: str | None = None,
    speed: float | None = None,
    model: str = MODEL,
    stream: bool = True,
) -> Spoken:
    """Have a text spoken into a file. The file appears whole or not at all."""
    if audio_format not in FORMATS:
        raise FleetError(
            f"There is no format {audio_format!r}.", f"Formats: {', '.join(FORMATS)}.", ExitCode.USAGE
        )
    if not text.strip():
        raise FleetError(
            "There is no text to speak.",
            "Give it as an argument, or - to read it from stdin.",
            ExitCode.USAGE,
        )
    request = {"model": model, "input": text, "response_format": audio_format, "stream": stream}
    request |= {key: value for key, value in (("voice", voice), ("speed", speed)) if value is not None}
    started = time.monotonic()
    with _explained(connection), _answer(connection, request) as answer, _whole_file(path) as file:
        header_size = 0
        first_audio: float | None = None
        for piece in answer.iter_content(4096):
            file.write(piece)
            if audio_format == "wav" and not header_size:
                header_size = _wav_header_size(file)
            if first_audio is None and file.tell() > header_size and (header_size or audio_format != "wav"):
                first_audio = time.monotonic()
        elapsed = time.monotonic() - started
        if first_audio is None:
            raise FleetError(
                f"{connection.host} answered with no audio.", _look_there(answer), ExitCode.SERVICE
            )
        duration = (
            _finish_wav(file, header_size) if audio_format == "wav" else _duration(file, audio_format, answer)
        )
        headers = answer.headers
    return Spoken(
        path=path,
        engine=headers.get("X-Engine", "unknown"),
        voice=headers.get("X-Voice", "unknown"),
        cache=headers.get("X-Cache", "unknown"),
        ttfa=first_audio - started,
        elapsed=elapsed,
        duration=duration,
    )


# --- the inventory ------------------------------------------------------------------------------------------


def _host_variables(paths: Path | Sequence[Path], host: str | None, names: Sequence[str]) -> dict[str, str]:
    """The named variables of a host; all but OPTIONAL_VARIABLES must be set."""
    inventory = inventories.load(paths)
    if host is None:
        speakers = inventory.groups.get("gpu", [])
        if len(speakers) != 1:
            raise FleetError(
                f"The inventory has {len(speakers)} hosts that speak (group gpu): name one with --host.",
                f"Hosts: {inventories.enumerate_some(speakers)}.",
                ExitCode.USAGE,
            )
        host = speakers[0]
    values = inventories.variables(inventory, host, names)
    for name in names:
        if not values[name] and name not in OPTIONAL_VARIABLES:
            raise FleetError(
                f"Host {host} has no variable {name}.", "Set it in the inventory.", ExitCode.USAGE
            )
    return {name: str(value) for name, value in values.items() if value}


def _require_pair(file: Path) -> None:
    """Raise FleetError unless a file holds a client certificate and its key."""
    try:
        ssl.create_default_context().load_cert_chain(file)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "no certificate with its key"
        raise FleetError(
            f"{file} cannot be used as a client certificate: {reason}.",
            "Give the file that `mayafleet cert issue` wrote.",
            ExitCode.USAGE,
        ) from None


# --- the request --------------------------------------------------------------------------------------------


class _Bearer(requests.auth.AuthBase):
    """Given as `auth`, so that no password of a .netrc file replaces it."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


@contextmanager
def _answer(connection: Connection, request: dict[str, object]) -> Iterator[requests.Response]:
    """The service's answer, its body still to come; FleetError when it is not audio."""
    trusted = ssl.get_default_verify_paths()
    verify = str(connection.ca_file) if connection.ca_file else trusted.cafile or trusted.capath or True
    with requests.post(
        f"{connection.url.rstrip('/')}/v1/audio/speech",
        json=request,
        auth=_Bearer(connection.token),
        cert=str(connection.certificate) if connection.certificate else None,
        headers={"Accept-Encoding": "identity"},
        verify=verify,
        stream=True,
        allow_redirects=False,  # a redirected POST would turn into a GET, elsewhere
        timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
    ) as answer:
        if answer.status_code != 200:
            raise _refusal(connection, answer)
        if not answer.headers.get("Content-Type", "").startswith("audio/"):
            kind = answer.headers.get("Content-Type", "no content type")
            raise FleetError(
                f"{connection.host} answered {kind} instead of audio.", _look_there(answer), ExitCode.SERVICE
            )
        yield answer


def _refusal(connection: Connection, answer: requests.Response) -> FleetError:
    try:
        error = answer.json()["error"]
        said, explained = f"{error['message']} (code {error['code']})", True
    except (ValueError, KeyError, TypeError):
        kind = answer.headers.get("Content-Type", "no content type")
        said, explained = f"nothing that says why ({kind})", False
    if answer.status_code == 403 and explained:
        next_step = "Show a token with that scope: `mayafleet jwt issue --scope NAME`."
    elif answer.status_code == 401:
        next_step = (
            "Check the host's fleet_jwt_key (or fleet_jwt_key_file), _issuer, _audience, or the token given. "
            "Hosts know a key that was just rotated once role inference has run."
        )
    elif answer.headers.get("Retry-After", "").isdigit():
        next_step = f"Try again in {answer.headers['Retry-After']} seconds."
    elif answer.status_code < 500 and explained:
        next_step = "Change what is asked for."
    else:
        next_step = _look_there(answer)
    return FleetError(f"{connection.host} answered {answer.status_code}: {said}", next_step, ExitCode.SERVICE)


def _look_there(answer: requests.Response) -> str:
    request = answer.headers.get("X-Request-Id")
    return "Look at the logs of the gateway and the service there" + (
        f", for request {request}." if request else "."
    )


@contextmanager
def _explained(connection: Connection) -> Iterator[None]:
    """Turn what can go wrong on the way into a sentence."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        reason = re.search(r"certificate verify failed: ([^(]+?) \(", str(error))
        raise FleetError(
            f"The certificate of {connection.host} is not accepted: {reason[1] if reason else error}.",
            "Set fleet_ca_file (or --ca) to the authority that issued it, and use an address that it names.",
            ExitCode.SERVICE,
        ) from None
    except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError):
        raise FleetError(
            f"{connection.host} broke off in the middle of the audio; nothing was written.",
            "Try again, and look at the logs of the gateway and the service there.",
            ExitCode.SERVICE,
        ) from None
    except requests.exceptions.Timeout:
        raise FleetError(
            f"{connection.host} did not answer in time.",
            "Look at the load and the logs of the service there.",
            ExitCode.SERVICE,
        ) from None
    except requests.exceptions.RequestException as error:
        raise FleetError(
            f"{connection.host} cannot be reached: {_root_of(error)}.",
            "Check that the host is up, and that its firewall lets this address in.",
            ExitCode.SERVICE,
        ) from None


def _root_of(error: BaseException) -> str:
    """The plain reason under the wrappings of an HTTP library's error."""
    reason = error.args[0] if error.args else error
    inner = getattr(reason, "reason", None)
    text = str(inner if isinstance(inner, BaseException) else reason)
    return re.sub(r"^.*?(?=\[Errno|Failed|Connection)", "", text).rstrip(".)'\"") or type(error).__name__


# --- the file -----------------------------------------------------------------------------------------------


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name once it is complete, and leaves nothing behind otherwise."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("w+b") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        if isinstance(error, requests.exceptions.RequestException):
            raise
        raise FleetError(
            f"{path} cannot be written: {error.strerror}.", "Choose another file with -o.", ExitCode.USAGE
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _wav_header_size(file: BinaryIO) -> int:
    """Where the samples begin, or 0 while too little has come to tell."""
    end = file.tell()
    file.seek(0)
    header = file.read(4096)
    file.seek(end)
    if len(header) < 12:
        return 0
    if header[:4] != b"RIFF" or header[8:12] != b"WAVE":
        raise FleetError(
            "The service answered something that is no WAV.", "Look at the service's logs.", ExitCode.SERVICE
        )
    at = 12
    while at + 8 <= len(header):
        name, size = struct.unpack_from("<4sI", header, at)
        if name == b"data":
            return at + 8
        at += 8 + size + size % 2
    return 0


def _finish_wav(file: BinaryIO, header_size: int) -> float:
    """Put the real sizes, which a stream cannot know at first, into the header. Returns seconds of audio."""
    end = file.seek(0, os.SEEK_END)
    for at, size in ((4, end - 8), (header_size - 4, end - header_size)):
        file.seek(at)
        file.write(struct.pack("<I", size))
    file.seek(0)
    header = file.read(header_size)
    bytes_per_second: int = struct.unpack_from("<I", header, header.index(b"fmt ") + 16)[0]
    return (end - header_size) / bytes_per_second if bytes_per_second else math.nan


def _duration(file: BinaryIO, audio_format: str, answer: requests.Response) -> float:
    if audio_format == "pcm" and (rate := answer.headers.get("X-Sample-Rate")):
        return file.tell() / (int(rate) * SAMPLE_BYTES)
    return float(answer.headers.get("X-Audio-Duration-Seconds", math.nan))

"""`mayafleet secrets`: the operator's secrets are made, replaced and looked at.

They lie in one encrypted file of the inventory (mayafleet.vault), as variables that roles and this command
read. Those that one host alone needs are made there, and are not known here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Annotated, Any

import typer
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from rich.console import Console

from mayafleet import certs, project, tokens, vault
from mayafleet import inventory as inventories
from mayafleet.checks import Check, Level, worst
from mayafleet.console import preflight_report
from mayafleet.errors import ExitCode, FleetError
from mayafleet.options import InventoryOption, JsonOption, time_span
from mayafleet.vault import Backend, SecretFile

DATES = "secrets_made"  # in the file too: when each was made
MOST_DAYS = 365
LEAST_LENGTH = 20
PLACEHOLDER = re.compile(r"change.?me|password|example|placeholder", re.IGNORECASE)
# Values that must be nowhere in the clear; others give the last two.
SECRET_VARIABLES = (
    "fleet_jwt_key", "redis_password", "grafana_admin_password", "tls_authority_key",
    "alertmanager_webhook_token", "tls_acme_dns_credentials",
)  # fmt: skip
SETTINGS = (
    "fleet_jwt_key_file", "inference_jwks_file", "tls_source", "tls_authority_dir", "tls_authority_name",
    "gateway_client_authority_dir",
)  # fmt: skip

app = typer.Typer(help="The operator's secrets, encrypted in the inventory.", no_args_is_help=True)


class Name(StrEnum):
    """What can be rotated."""

    JWT = "jwt"
    REDIS = "redis"
    GRAFANA = "grafana"
    AUTHORITY = "authority"
    TLS = "tls"


@dataclass(frozen=True)
class Secret:
    """A secret in the file."""

    name: Name
    variable: str
    make: Callable[[], str]


def _authority_key() -> str:
    key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


SECRETS = (
    Secret(Name.JWT, "fleet_jwt_key", lambda: tokens.pem_of(Ed25519PrivateKey.generate())),
    Secret(Name.REDIS, "redis_password", partial(token_hex, 32)),
    Secret(Name.GRAFANA, "grafana_admin_password", partial(token_hex, 24)),
    Secret(Name.AUTHORITY, "tls_authority_key", _authority_key),
)
TAGS = {
    Name.JWT: "inference",
    Name.REDIS: "redis,inference",
    Name.GRAFANA: "grafana",
    Name.AUTHORITY: "tls,inference",
    Name.TLS: "tls,inference",
}


# --- commands -----------------------------------------------------------------------------------------------


@app.command()
def init(
    inventory: InventoryOption,
    backend: Annotated[Backend | None, typer.Option(help="What encrypts. [default: vault]")] = None,
) -> None:
    """Make the secrets that are missing, and encrypt them. Those that are there stay as they are."""
    folder = _folder(inventory)
    file = vault.find(folder) or SecretFile(folder, backend or Backend.VAULT)
    if backend and file.backend is not backend:
        raise FleetError(
            f"{folder} keeps its secrets in {file.path.name} already.",
            "Leave --backend out, or move them by hand: see docs/secrets.md.",
            ExitCode.USAGE,
        )
    values = file.read() if file.path.exists() else {}
    known = _known(inventory)
    jwks, certificate = _jwks_file(known), _authority_certificate(known)
    made = []
    for secret in _wanted(known):
        if not known[secret.variable]:
            plain = _plain_file(secret, known)
            values[secret.variable] = plain.read_text() if plain else secret.make()
            values.setdefault(DATES, {})[secret.name.value] = _today()
            made.append(f"{secret.variable}, taken over from {plain}" if plain else secret.variable)
    if made:
        file.write(values)
    if key := values.get("fleet_jwt_key"):
        tokens.publish(jwks, tokens.parse_key(key.encode(), f"fleet_jwt_key of {file.path}"))
    print("\n".join([f"Made in {file.path}:", *made]) if made else f"{file.path} lacks nothing.")
    if "tls_authority_key" in made and certificate.exists():  # whose key is lost
        _renew_authority(known, values["tls_authority_key"])
        print(f"{certificate} holds a new authority, and the old one: hand it to clients.")
    for secret in _wanted(known):
        if plain := _plain_file(secret, known):
            print(f"{plain} is in the clear and no longer needed: remove it once `secrets check` is content.")
    if made:
        print(f"Next: mayafleet provision{_options(inventory)}")


@app.command()
def rotate(
    name: Annotated[Name, typer.Argument(help="What to replace.")],
    inventory: InventoryOption,
    overlap: Annotated[
        str, typer.Option(help="How long tokens of the old key are still good; 0s: no longer. For jwt.")
    ] = "7d",
) -> None:
    """Replace a secret, and say what to run so that hosts know."""
    folder = _folder(inventory)
    file = vault.find(folder)
    if not file:
        raise FleetError(
            f"{folder} has no file of secrets.", "`mayafleet secrets init` makes it.", ExitCode.USAGE
        )
    span = time_span(overlap, least=0)
    known, values = _known(inventory), file.read()
    if name is Name.TLS:
        if known["tls_source"] != "own_authority":
            raise FleetError(
                f"The hosts' keys are not made here: tls_source is {known['tls_source']}.",
                "Give new files (files), or wait for the renewal on the host (acme).",
                ExitCode.USAGE,
            )
        values["tls_keys_since"] = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    else:
        secret = next(one for one in SECRETS if one.name is name)
        if secret.variable not in values:
            raise FleetError(
                f"{secret.variable} is not in {file.path}.",
                "Change it where it is kept, or have `mayafleet secrets init` make it there.",
                ExitCode.USAGE,
            )
        old, values[secret.variable] = values[secret.variable], secret.make()
    values.setdefault(DATES, {})[name.value] = _today()
    file.write(values)
    if name is Name.AUTHORITY:
        certificate = _renew_authority(known, values["tls_authority_key"])
        print(f"{certificate} holds the new authority and the old one: hand it to clients. When all have it:")
    elif name is Name.JWT:
        until = datetime.now(UTC) + span
        retiring = tokens.parse_key(old.encode(), f"The old fleet_jwt_key of {file.path}")
        key = tokens.parse_key(values["fleet_jwt_key"].encode(), "fleet_jwt_key")
        tokens.publish(_jwks_file(known), key, retiring, until)
        good = f"are good until {until:%Y-%m-%d %H:%M} UTC" if span else "are refused"
        print(f"The new key signs from now on; tokens of the old one {good}, once hosts know:")
    else:
        print(f"{name} is replaced in {file.path}. Hosts learn it by:")
    print(f"mayafleet provision{_options(inventory)} --tags {TAGS[name]}")


@app.command()
def check(inventory: InventoryOption, as_json: JsonOption = False) -> None:
    """Judge how the secrets are kept: there, encrypted, strong, not too old. Fails with exit code 8."""
    checks = list(judge(_folder(inventory), _known(inventory)))
    failed = worst(checks) is Level.FAIL
    code = ExitCode.VERIFY_FAILED if failed else ExitCode.OK
    if as_json:
        print(json.dumps({"exit_code": code, "checks": [asdict(one) for one in checks]}, indent=2))
    else:
        preflight_report({"secrets": checks}, Console(highlight=False))
    raise typer.Exit(code)


def _renew_authority(known: dict[str, Any], pem: str) -> Path:
    """Put a certificate for this key before the one that clients trust by now."""
    path = _authority_certificate(known)
    key = load_pem_private_key(pem.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # it was just made
    certificates = [certs.authority_certificate(key, str(known["tls_authority_name"] or "maya1-fleet"))]
    if path.exists():
        certificates.append(x509.load_pem_x509_certificate(path.read_bytes()))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in certificates))
    new.replace(path)
    return path


# --- judging ------------------------------------------------------------------------------------------------


def judge(folder: Path, known: dict[str, Any]) -> Iterator[Check]:
    """What `check` looks at: the file, what opens it, each secret, and what lies about in the clear."""
    file = vault.find(folder)
    yield _file_check(file)
    yield from _key_checks(folder, file)
    dates = (known[DATES] or {}) if file else {}
    for secret in _wanted(known):
        yield _secret_check(secret, known, dates)
    for name, file_name in ((Name.JWT, "public keys"), (Name.AUTHORITY, "certificate")):
        if any(one.name is name and known[one.variable] for one in _wanted(known)):
            yield _public_check(f"{name}: {file_name}", name, known)
    for secret in _wanted(known):
        if plain := _plain_file(secret, known):
            yield Check(
                f"{secret.name}: in the clear",
                Level.FAIL if known[secret.variable] else Level.WARN,
                str(plain),
                "no copy that is not encrypted",
                "Remove it; `mayafleet secrets init` has taken it over."
                if known[secret.variable]
                else "`mayafleet secrets init` takes it over.",
            )
    yield from _client_key_checks(known)
    for path, variable in in_the_clear(folder):
        yield Check(
            f"{variable}: in the clear",
            Level.FAIL,
            str(path.relative_to(folder)),
            "a value that is encrypted or looked up",
            f"Move it to {vault.NAMES[file.backend if file else Backend.VAULT]}, and replace it: others may "
            "have read it.",
        )


def in_the_clear(folder: Path) -> Iterator[tuple[Path, str]]:
    """Secret variables that a file of the inventory sets to a plain value."""
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".yml", ".yaml", ".json") or not path.is_file():
            continue
        if "files" in path.relative_to(folder).parts:
            continue
        content = path.read_bytes()
        if content.startswith(vault.VAULT_HEADER):
            continue
        try:
            document = yaml.load(content, Loader=_Loader)
        except yaml.YAMLError:  # nor would Ansible read it
            continue
        for variable, value in _assignments(document):
            if variable in SECRET_VARIABLES and any(_is_plain(leaf) for leaf in _leaves(value)):
                yield path, variable


def _file_check(file: SecretFile | None) -> Check:
    title, wanted = "file", "encrypted, and for its owner alone to write"
    if not file:
        mend = "`mayafleet secrets init` makes it."
        return Check(title, Level.WARN, "none", "secrets.yml or secrets.sops.yml in group_vars/all", mend)
    shown = file.path.relative_to(file.inventory)
    if not file.is_encrypted():
        mend = f"`{vault.ENCRYPT[file.backend]} {file.path}`, then replace what was in it."
        return Check(title, Level.FAIL, f"{shown} is not encrypted", wanted, mend)
    mode = stat.S_IMODE(file.path.stat().st_mode)
    level = Level.FAIL if mode & 0o022 else Level.PASS
    return Check(title, level, f"{shown}, {file.backend}, mode {mode:04o}", wanted, f"chmod go-w {file.path}")


def _key_checks(folder: Path, file: SecretFile | None) -> Iterator[Check]:
    """The files that open the file: the vault's password, the age key."""
    if not file:
        return
    variable = "SOPS_AGE_KEY_FILE" if file.backend is Backend.SOPS else "ANSIBLE_VAULT_PASSWORD_FILE"
    path = Path(os.environ.get(variable, ""))
    # Not one that this command made up for a password that was typed in.
    if not os.environ.get(variable) or path.is_relative_to("/proc") or not path.is_file():
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    beside = path.resolve().is_relative_to(folder)
    # Whether others can read a program that fetches the password says nothing.
    open_to_others = bool(mode & (0o022 if mode & 0o100 else 0o077))
    yield Check(
        variable,
        Level.FAIL if open_to_others or beside else Level.PASS,
        f"{path}, mode {mode:04o}" + (", inside the inventory" if beside else ""),
        "a file for its owner alone, outside of the inventory",
        f"Move it, and chmod 600 {path}.",
    )


def _client_key_checks(known: dict[str, Any]) -> Iterator[Check]:
    """The key of the clients' authority has a file of its own, where it is kept with the inventory at all."""
    folder = known["gateway_client_authority_dir"]
    if not folder or not (path := project.root() / str(folder) / "ca.key").is_file():
        return
    locked, mode = vault.is_locked(path), stat.S_IMODE(path.stat().st_mode)
    yield Check(
        "clients: authority's key",
        Level.PASS if locked else Level.FAIL if mode & 0o077 else Level.WARN,
        f"{path}, " + ("encrypted" if locked else f"in the clear, mode {mode:04o}"),
        "encrypted",
        f"`ansible-vault encrypt {path}`; it is used as before.",
    )


def _secret_check(secret: Secret, known: dict[str, Any], dates: dict[str, str]) -> Check:
    value, wanted, replace = known[secret.variable], "", f"`mayafleet secrets rotate {secret.name}`"
    if not value:
        level = Level.FAIL if secret.name is Name.JWT and not known["fleet_jwt_key_file"] else Level.WARN
        return Check(secret.name, level, "not set", secret.variable, "`mayafleet secrets init` makes it.")
    if weakness := _weakness(secret, str(value)):
        return Check(
            secret.name, Level.FAIL, *weakness, mend=f"{replace}, or set a better one where it is kept."
        )
    made = dates.get(secret.name.value)
    if not made:
        return Check(secret.name, Level.PASS, "of unknown age")
    days = (datetime.now(UTC).date() - datetime.fromisoformat(made).date()).days
    found = f"made {made}, {days} days ago"
    if days > MOST_DAYS and secret.name != Name.AUTHORITY:
        wanted = f"at most {MOST_DAYS} days"
        return Check(secret.name, Level.WARN, found, wanted, f"{replace}.")
    return Check(secret.name, Level.PASS, found)


def _weakness(secret: Secret, value: str) -> tuple[str, str] | None:
    """What is found and what is wanted, without the value."""
    if secret.name in (Name.JWT, Name.AUTHORITY):
        kind = Ed25519PrivateKey if secret.name is Name.JWT else ec.EllipticCurvePrivateKey
        try:
            good = isinstance(load_pem_private_key(value.encode(), None), kind)
        except (ValueError, TypeError):
            good = False
        named = "Ed25519" if secret.name is Name.JWT else "elliptic-curve"
        return None if good else ("no such key", f"an {named} private key in PEM")
    wanted = f"{LEAST_LENGTH} characters or more, at random"
    if len(value) < LEAST_LENGTH or len(set(value)) < 8:
        return f"{len(value)} characters, {len(set(value))} different ones", wanted
    return ("a placeholder", wanted) if PLACEHOLDER.search(value) else None


def _public_check(title: str, name: Name, known: dict[str, Any]) -> Check:
    """Whether the public half that hosts get is that of the secret key."""
    pem = str(known["fleet_jwt_key" if name is Name.JWT else "tls_authority_key"]).encode()
    try:
        if name is Name.JWT:
            path = _jwks_file(known)
            entries = {entry["kid"]: entry for entry in json.loads(path.read_text())["keys"]}
            kid = tokens.public_jwk(tokens.parse_key(pem, "fleet_jwt_key"))["kid"]
            ends = sorted(datetime.fromtimestamp(one["exp"], UTC) for one in entries.values() if "exp" in one)
            told = "".join(f"; an old one until {end:%Y-%m-%d %H:%M} UTC" for end in ends)
            good, found = kid in entries, f"{len(entries)} in {path.name}{told}"
        else:
            path = _authority_certificate(known)
            if not path.exists():
                return Check(title, Level.PASS, f"{path.name} will be made by role tls")
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            key = load_pem_private_key(pem, None)
            good = certificate.public_key() == key.public_key()
            end = certificate.not_valid_after_utc
            found = f"{path.name}, until {end:%Y-%m-%d}"
            if good and (end - datetime.now(UTC)).days < MOST_DAYS:
                return Check(title, Level.WARN, found, "a year left", "`mayafleet secrets rotate authority`.")
    except (OSError, ValueError, TypeError, KeyError, FleetError) as error:
        good, found = False, f"cannot be read: {error}"
    mend = "`mayafleet secrets init` writes it." if name is Name.JWT else "Put the pair back from a backup."
    return Check(title, Level.PASS if good else Level.FAIL, found, "the public half of the secret key", mend)


# --- the inventory ------------------------------------------------------------------------------------------


def _folder(paths: list[Path]) -> Path:
    folders = [path.resolve() for path in paths if path.is_dir()]
    if len(folders) != 1:
        raise FleetError(
            f"Secrets lie in one inventory folder; --inventory names {len(folders) or 'none'}.",
            "Give the folder that holds hosts.yml and group_vars.",
            ExitCode.USAGE,
        )
    return folders[0]


def _known(paths: list[Path]) -> dict[str, Any]:
    """What the inventory says, wherever it has it from: of each variable the first value that a host has."""
    inventory = inventories.load(paths)
    names = [*SETTINGS, DATES, *(secret.variable for secret in SECRETS)]
    hosts = inventories.variables_of(inventory, inventory.hosts, names).values() if inventory.hosts else ()
    known = {name: next((host[name] for host in hosts if host[name]), None) for name in names}
    return known | {"tls_source": known["tls_source"] or "own_authority"}


def _wanted(known: dict[str, Any]) -> list[Secret]:
    own_authority = known["tls_source"] == "own_authority"
    return [secret for secret in SECRETS if secret.name != Name.AUTHORITY or own_authority]


def _jwks_file(known: dict[str, Any]) -> Path:
    if not known["inference_jwks_file"]:
        raise FleetError(
            "The inventory does not say where the public keys of tokens lie.",
            "Set inference_jwks_file, for example to {{ inventory_dir }}/files/jwt/jwks.json.",
            ExitCode.USAGE,
        )
    return project.root() / str(known["inference_jwks_file"])


def _authority_certificate(known: dict[str, Any]) -> Path:
    return project.root() / str(known["tls_authority_dir"] or "") / "ca.pem"


def _plain_file(secret: Secret, known: dict[str, Any]) -> Path | None:
    """The file in which such a key was kept before, if it is there."""
    if secret.name is Name.JWT and known["fleet_jwt_key_file"]:
        path = project.root() / str(known["fleet_jwt_key_file"])
    elif secret.name is Name.AUTHORITY and known["tls_authority_dir"]:
        path = project.root() / str(known["tls_authority_dir"]) / "ca.key"
    else:
        return None
    return path if path.is_file() else None


def _options(paths: list[Path]) -> str:
    return "".join(f" -i {shlex.quote(str(path))}" for path in paths)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


# --- values in the clear ------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Reads what Ansible reads; a value with a tag, such as !vault, is none that is in the clear."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _assignments(document: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(document, dict):
        for key, value in document.items():
            yield str(key), value
            yield from _assignments(value)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value


def _is_plain(leaf: Any) -> bool:
    return leaf not in (None, "") and "{{" not in str(leaf) and not str(leaf).startswith("ENC[")

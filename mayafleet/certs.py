"""Certificates by which clients prove who they are, their authority, and the list of what was revoked.

All lies in one folder on the operator's machine: `ca.pem` and `ca.key`, which ansible-vault may have
encrypted; `crl.pem`, by which hosts know what is revoked; `issued/SERIAL.pem`, every certificate ever signed;
`clients/NAME.pem`, certificate and key in one, for the client. What it allows stands in its subject: CN is
who asks, O the tenant, each OU a scope.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mayafleet import files, vault
from mayafleet.errors import ExitCode, FleetError
from mayafleet.tokens import Scope

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")  # X.509 bounds names at 64 characters
AUTHORITY_DAYS = 3650
CRL_DAYS = 365  # role gateway signs the list anew when less than half of it is left
CLOCK_SKEW = timedelta(minutes=5)


class State(StrEnum):
    """How a certificate stands."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Certificate:
    """What was signed for a client. Times are UTC."""

    name: str
    serial: str
    """As OpenSSL prints it: hexadecimal, in capitals."""
    tenant: str
    scopes: tuple[str, ...]
    expires: datetime
    state: State


class Authority:
    """The authority in a folder."""

    def __init__(self, folder: Path) -> None:
        """Raises FleetError where there is none, or its files cannot be read."""
        self.folder = folder
        try:
            self._certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            self._crl = x509.load_pem_x509_crl((folder / "crl.pem").read_bytes())
        except FileNotFoundError as error:
            raise FleetError(
                f"{folder} holds no authority of clients: {Path(error.filename).name} is missing.",
                "`mayafleet cert issue NAME` makes one with its first certificate.",
                ExitCode.USAGE,
            ) from None
        except (OSError, ValueError) as error:
            raise FleetError(
                f"The authority in {folder} cannot be read: {error}.",
                "Put its ca.pem and crl.pem back from your backup.",
                ExitCode.USAGE,
            ) from None

    @classmethod
    def create(cls, folder: Path) -> Authority:
        """Make an authority, with an empty list. Raises FleetError where there is one already."""
        if (folder / "ca.pem").exists() or (folder / "ca.key").exists():
            raise FleetError(
                f"{folder} holds an authority already.", "Choose another folder.", ExitCode.USAGE
            )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP384R1())
        certificate = authority_certificate(key, "maya1-fleet clients")
        files.write(folder / "ca.key", _pem(key), private=True)
        files.write(folder / "crl.pem", _revocations(certificate, key, []).public_bytes(Encoding.PEM))
        files.write(folder / "ca.pem", certificate.public_bytes(Encoding.PEM))
        return cls(folder)

    @property
    def crl_expires(self) -> datetime:
        """From when on NGINX refuses every client, unless hosts get a newer list."""
        end = self._crl.next_update_utc
        assert end is not None  # ours always has one
        return end

    def certificates(self) -> list[Certificate]:
        """Every certificate that was signed: by name, the newest first."""
        loaded = [
            x509.load_pem_x509_certificate(path.read_bytes())
            for path in (self.folder / "issued").glob("*.pem")
        ]
        loaded.sort(key=lambda one: one.not_valid_before_utc, reverse=True)
        return sorted((self._describe(one) for one in loaded), key=lambda one: one.name)

    def issue(
        self,
        name: str,
        *,
        days: int,
        scopes: Iterable[Scope] = (Scope.SPEAK,),
        tenant: str | None = None,
        renew: bool = False,
    ) -> Path:
        """Sign a certificate for a new key, and return the file that holds both, for the client.

        renew: also where the client has a valid one, which goes on being valid. Raises FleetError for a bad
        name, and for one that has a valid certificate already.
        """
        for field, value in (("name", name), ("tenant", tenant)):
            if value is not None and not NAME.fullmatch(value):
                raise FleetError(
                    f"The {field} {value!r} is not fit for a certificate.",
                    "Use 1 to 64 letters, digits and . _ @ -, with a letter or a digit first.",
                    ExitCode.USAGE,
                )
        present = [one for one in self.certificates() if one.name == name and one.state == State.VALID]
        if present and not renew:
            raise FleetError(
                f"{name!r} has a certificate that is valid until {present[0].expires:%Y-%m-%d}.",
                "Give --renew for another beside it, or revoke it first.",
                ExitCode.USAGE,
            )
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                *([x509.NameAttribute(NameOID.ORGANIZATION_NAME, tenant)] if tenant else []),
                *(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, scope) for scope in scopes),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        signer = self._key()
        certificate = (
            _builder(subject, self._certificate.subject, key.public_key(), datetime.now(UTC), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
            .sign(signer, SHA256())
        )
        pem = certificate.public_bytes(Encoding.PEM)
        for kind in ("issued", "clients"):
            (self.folder / kind).mkdir(exist_ok=True, mode=0o700)
        files.write(self.folder / "issued" / f"{_serial(certificate)}.pem", pem)
        path = self.folder / "clients" / f"{name}.pem"
        files.write(path, pem + _pem(key), private=True)
        return path

    def revoke(self, which: str) -> list[Certificate]:
        """Put all valid certificates of a name, or the one of a serial number, on the list, and return them.

        Raises FleetError where nothing was signed for it, or nothing is left to revoke.
        """
        meant = [one for one in self.certificates() if which in (one.name, one.serial)]
        valid = [one for one in meant if one.state == State.VALID]
        if not meant:
            raise FleetError(
                f"No certificate was issued for {which!r}.",
                "`mayafleet cert list` shows names and serial numbers.",
                ExitCode.USAGE,
            )
        if not valid:
            state = (
                "was revoked already" if any(one.state == State.REVOKED for one in meant) else "has expired"
            )
            raise FleetError(
                f"The certificate of {which!r} {state}.",
                "Nothing is to be done; `mayafleet provision --playbook revoke` sends hosts the list again.",
                ExitCode.USAGE,
            )
        now = datetime.now(UTC)
        added = [x509.RevokedCertificateBuilder(int(one.serial, 16), now).build() for one in valid]
        self._crl = _revocations(self._certificate, self._key(), [*self._crl, *added])
        files.write(self.folder / "crl.pem", self._crl.public_bytes(Encoding.PEM))
        return [one for one in self.certificates() if one.serial in {old.serial for old in valid}]

    def _describe(self, certificate: x509.Certificate) -> Certificate:
        def values(oid: x509.ObjectIdentifier) -> tuple[str, ...]:
            return tuple(str(one.value) for one in certificate.subject.get_attributes_for_oid(oid))

        if self._crl.get_revoked_certificate_by_serial_number(certificate.serial_number):
            state = State.REVOKED
        elif certificate.not_valid_after_utc <= datetime.now(UTC):
            state = State.EXPIRED
        else:
            state = State.VALID
        (name,) = values(NameOID.COMMON_NAME)
        return Certificate(
            name=name,
            serial=_serial(certificate),
            tenant=next(iter(values(NameOID.ORGANIZATION_NAME)), name),
            scopes=values(NameOID.ORGANIZATIONAL_UNIT_NAME),
            expires=certificate.not_valid_after_utc,
            state=state,
        )

    def _key(self) -> ec.EllipticCurvePrivateKey:
        path = self.folder / "ca.key"
        try:
            key = load_pem_private_key(vault.read(path).encode(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise FleetError(
                f"The authority's key {path} cannot be read: {error}.",
                "Sign where the key is kept, or put it back from your backup.",
                ExitCode.USAGE,
            ) from None
        if (
            not isinstance(key, ec.EllipticCurvePrivateKey)
            or key.public_key() != self._certificate.public_key()
        ):
            raise FleetError(
                f"{path} is not the key of {self.folder / 'ca.pem'}.",
                "Put the pair back from your backup.",
                ExitCode.USAGE,
            )
        return key


def authority_certificate(key: ec.EllipticCurvePrivateKey, common_name: str) -> x509.Certificate:
    """The certificate of an authority, signed by itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return (
        _builder(name, name, key.public_key(), datetime.now(UTC), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, SHA384())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(**allowed: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})


def _revocations(
    authority: x509.Certificate, key: ec.EllipticCurvePrivateKey, revoked: Iterable[x509.RevokedCertificate]
) -> x509.CertificateRevocationList:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now - CLOCK_SKEW)
        .next_update(now + timedelta(days=CRL_DAYS))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        # It must grow from list to list (RFC 5280, section 5.2.3), which time does.
        .add_extension(x509.CRLNumber(int(now.timestamp() * 1_000_000)), critical=False)
    )
    for one in revoked:
        builder = builder.add_revoked_certificate(one)
    return builder.sign(key, SHA384())


def _serial(certificate: x509.Certificate) -> str:
    text = f"{certificate.serial_number:X}"
    return text.zfill(len(text) + len(text) % 2)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

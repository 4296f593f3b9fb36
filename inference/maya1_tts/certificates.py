"""Client certificates, as the gateway reports them: it has checked them, and says whose they are.

Its header `X-Client-Certificate` is the secret that gateway and service share, a space, and the certificate's
subject as in RFC 2253. Without that secret anybody who reaches the port could name himself.
"""

import hmac

from cryptography.x509 import Name, NameOID

from maya1_tts.auth import MAX_NAME_LENGTH, SCOPES, Subject
from maya1_tts.config import Settings, read_secret
from maya1_tts.errors import ApiError, shown

HEADER = "x-client-certificate"


class Certificates:
    """Knows who asks by the gateway's header; without a secret in the settings it knows nobody."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError when the secret cannot be read."""
        path = settings.gateway_secret_file
        self._secret = read_secret("GATEWAY_SECRET_FILE", path) if path else None

    def check(self, header: str | None) -> Subject | None:
        """Whose certificate it is; None without one. Raises ApiError 401 where it names nobody.

        CN is who asks, O the tenant (by default who asks), each OU a scope.
        """
        secret, _, subject = (header or "").partition(" ")
        if not self._secret or not subject or not hmac.compare_digest(secret.encode(), self._secret):
            return None
        try:
            name = Name.from_rfc4514_string(subject, {"emailAddress": NameOID.EMAIL_ADDRESS})
        except ValueError:
            name = Name([])
        values = {
            oid: [str(one.value) for one in name.get_attributes_for_oid(oid)]
            for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME)
        }
        names = values[NameOID.COMMON_NAME]
        if len(names) != 1 or not 1 <= len(names[0]) <= MAX_NAME_LENGTH:
            raise ApiError(
                401,
                "invalid_certificate",
                f"The certificate's subject is {shown(subject)}; allowed: one with exactly one CN.",
                headers={"WWW-Authenticate": 'Bearer realm="maya1-tts"'},
            )
        tenant = values[NameOID.ORGANIZATION_NAME] or names
        return Subject(names[0], tenant[0], SCOPES.intersection(values[NameOID.ORGANIZATIONAL_UNIT_NAME]))

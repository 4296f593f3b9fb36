"""One line in the log for each request for speech: who asked, for what, and how it ended.

Every entry point fills in a Record and hands it to `Service.conclude` when its last byte has left or its
client has gone. The text itself is only written where the operator asks for it.
"""

import hashlib
import hmac
import logging
import time
from dataclasses import dataclass, field
from typing import Literal

from maya1_tts.auth import Subject
from maya1_tts.budget import Charge
from maya1_tts.config import Settings, read_secret
from maya1_tts.studio import Listener, Order

Outcome = Literal["done", "refused", "failed", "cancelled"]
log = logging.getLogger("maya1_tts.audit")


@dataclass
class Record:
    """A request for speech, filled in while it is carried out. What stays None is not in the line.

    client: the address it came from. text: as asked for, also when it was refused later. ttfa: seconds until
    the first sound was ready.
    """

    request_id: str
    route: str
    client: str | None = None
    subject: Subject | None = None
    text: str | None = None
    engine: str | None = None
    order: Order | None = None
    listener: Listener | None = None
    ttfa: float | None = None
    charge: Charge | None = None
    begun: float = field(default_factory=time.perf_counter)


class Audit:
    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError when the key file cannot be used."""
        file = settings.audit_hash_key_file
        self._key = read_secret("AUDIT_HASH_KEY_FILE", file) if file else None
        self._with_text = settings.audit_text
        log.setLevel(logging.INFO)  # whatever LOG_LEVEL says of the rest

    def write(self, record: Record, outcome: Outcome, status: int | str, code: str | None) -> None:
        """status: that of the protocol the answer went by. code: of the error, if there was one."""
        fields: dict[str, object | None] = {
            "request_id": record.request_id,
            "route": record.route,
            "client": record.client,
            "outcome": outcome,
            "status": status,
            "code": code,
            "seconds": round(time.perf_counter() - record.begun, 4),
        }
        if subject := record.subject:
            fields |= {"subject": subject.id, "tenant": subject.tenant}
        if record.text is not None:
            fields |= {"chars": len(record.text), **self._digest(record.text)}
            fields |= {"text": record.text} if self._with_text else {}
        if order := record.order:
            fields |= {"engine": record.engine, "voice": order.voice.id, "format": order.format}
        if record.listener and record.ttfa is not None:
            speech = record.listener.speech
            fields |= {"cache": record.listener.cache, "ttfa_seconds": round(record.ttfa, 4)}
            fields |= {"audio_seconds": round(speech.seconds, 3)}
            fields |= {"rtf": round(speech.busy_seconds / speech.seconds, 4)} if speech.seconds else {}
        log.info(
            "speech", extra={"fields": {name: value for name, value in fields.items() if value is not None}}
        )

    def _digest(self, text: str) -> dict[str, str]:
        """Tells equal texts from others. Without a key, whoever has a guess at a short text can check it."""
        data = text.encode("utf-8", "surrogatepass")
        if self._key is None:
            return {"text_sha256": hashlib.sha256(data).hexdigest()}
        return {"text_hmac_sha256": hmac.digest(self._key, data, "sha256").hex()}

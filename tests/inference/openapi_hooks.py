"""For schemathesis (see test_openapi.py): what no schema can say of a body that is otherwise right.

Its input has words that the voice can speak, its model and its voice are there, this engine follows no
instructions, and a stream of audio has no place for timestamps.
"""

from typing import Any

import jsonschema_rs
import schemathesis

BODIES = ("/v1/audio/speech", "/v1/audio/jobs")
SPEAKABLE = {"model": "tts-1", "input": "Yes.", "voice": None, "instructions": None, "speed": 4}


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if context.operation.method != "post" or context.operation.path not in BODIES:
        return body
    schema = context.operation.definition.raw["requestBody"]["content"]["application/json"]["schema"]
    if not jsonschema_rs.is_valid(schema, body):
        return body
    streams = {"stream": False, "stream_format": None} if body.get("timestamps") else {}
    return body | SPEAKABLE | {name: value for name, value in streams.items() if name in body}

"""For schemathesis (see test_openapi.py): what no schema can say of a body that is otherwise right.

Its input has words that the voice can speak, its model and its voice are there, it leaves out what this
engine cannot follow, and a stream of audio has no place for timestamps.
"""

from typing import Any

import jsonschema_rs
import schemathesis

BODIES = ("/v1/audio/speech", "/v1/audio/jobs")
SPEAKABLE = {"model": "tts-1", "input": "Yes.", "voice": None, "speed": 4}
OPTIONS = ("instructions", "description", "seed", "temperature", "top_p", "repetition_penalty")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if context.operation.method != "post" or context.operation.path not in BODIES:
        return body
    schema = context.operation.definition.raw["requestBody"]["content"]["application/json"]["schema"]
    if not jsonschema_rs.is_valid(schema, body):
        return body
    left_out = [*OPTIONS, *(("stream", "stream_format") if body.get("timestamps") else ())]
    return {name: value for name, value in body.items() if name not in left_out} | SPEAKABLE


@schemathesis.hook
def map_query(context: Any, query: Any) -> Any:
    """The same of a query, where it is right: what it may not have stays for the service to refuse."""
    if context.operation.path != "/v1/audio/speech" or not query:
        return query
    fields = {one["name"]: one["schema"] for one in context.operation.definition.raw["parameters"]}
    if not all(name in fields and jsonschema_rs.is_valid(fields[name], query[name]) for name in query):
        return query
    if not {"model", "input"} <= query.keys():
        return query
    kept = {name: value for name, value in query.items() if name not in OPTIONS}
    return kept | {"model": "tts-1", "input": "Yes.", "voice": "joe", "speed": 4}

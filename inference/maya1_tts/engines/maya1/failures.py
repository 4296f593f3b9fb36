"""What can go wrong while a segment is spoken."""

from maya1_tts.errors import ApiError


def out_of_memory() -> ApiError:
    return ApiError(
        503,
        "out_of_memory",
        "The GPU had no memory left for this request; others go on. Try again soon.",
        headers={"Retry-After": "1"},
    )

"""Voices by description. Maya1 has no recorded speakers: words make the voice, and a seed keeps it the
same."""

from dataclasses import dataclass

from maya1_tts.engines.maya1.prompt import sentence
from maya1_tts.errors import ApiError


@dataclass(frozen=True)
class Preset:
    """`speaker` is who speaks and stays; `manner` is how, and gives way to what a request describes."""

    name: str
    speaker: str
    manner: str


# In the attributes that Maya1 was trained with: age, accent, pitch, timbre, pacing, emotion, intensity.
PRESETS = {
    "nora": Preset(
        "Nora, warm and clear",
        "Realistic female voice in the 30s age with american accent. Normal pitch, warm timbre.",
        "Conversational pacing, neutral emotion delivery at low intensity.",
    ),
    "miles": Preset(
        "Miles, deep and calm",
        "Realistic male voice in the 40s age with american accent. Low pitch, deep timbre.",
        "Slow pacing, neutral emotion delivery at low intensity.",
    ),
    "edith": Preset(
        "Edith, bright and British",
        "Realistic female voice in the 20s age with british accent. High pitch, smooth timbre.",
        "Conversational pacing, energetic emotion delivery at medium intensity.",
    ),
    "arjun": Preset(
        "Arjun, friendly and smooth",
        "Realistic male voice in the 30s age with indian accent. Normal pitch, smooth timbre.",
        "Conversational pacing, neutral emotion delivery at medium intensity.",
    ),
    "design": Preset("A voice of your own: describe it", "", ""),
}


def description(voice: str, asked: str | None) -> str:
    """What the model is told about the speaker: a preset's speaker with the asked or its own manner.

    The voice `design` is nothing but what is asked. Raises ApiError when that is nothing.
    """
    preset = PRESETS[voice]
    parts = [preset.speaker, sentence(asked or "") or preset.manner]
    whole = sentence(" ".join(part for part in parts if part))
    if not whole:
        raise ApiError(
            400,
            "missing_parameter",
            f"'description' is missing, and voice {voice!r} has none; allowed: the speaker in words.",
            "description",
        )
    return whole

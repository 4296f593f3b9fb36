"""Speech that does not end: a model that says the same frames over and over."""

from collections import deque

from maya1_tts.engines.maya1.tokens import Frame

LONGEST_PERIOD = 8  # frames, 0.7 s
REPEATED_FRAMES = 35  # 3 s


class LoopDetector:
    """True from `add` when the last 3 s of frames repeated those before, with a period of up to 8 frames.

    Frames of real speech, silence included, hardly ever repeat in all seven codes.
    """

    def __init__(self) -> None:
        self._last: deque[Frame] = deque(maxlen=LONGEST_PERIOD)
        self._runs = [0] * LONGEST_PERIOD

    def add(self, frame: Frame) -> bool:
        for ago, before in enumerate(reversed(self._last)):
            self._runs[ago] = self._runs[ago] + 1 if frame == before else 0
        self._last.append(frame)
        return max(self._runs) >= REPEATED_FRAMES

"""Pre-emption: SIGTERM and SIGUSR1 ask a run to save a checkpoint after the step at hand and to leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

# The status a pre-empted run leaves with (EX_TEMPFAIL): start it again to go on.
EXIT_STATUS = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption(SystemExit):
    """Raised when the checkpoint is saved; ends the process with ``EXIT_STATUS``."""

    def __init__(self) -> None:
        super().__init__(EXIT_STATUS)


class PreemptionFlag:
    """Set by a signal, read between steps; as a context it puts the former handlers back."""

    def __init__(self) -> None:
        self.is_set = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> PreemptionFlag:
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            self._former = {number: signal.signal(number, self._set) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True

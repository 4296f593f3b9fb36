"""Exit codes of the command, and the one error that operators are meant to see."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the command's exit status means.

    ====  =================================================================
    0     success
    1     internal error, a bug in mayafleet (MAYAFLEET_DEBUG=1 shows where)
    2     wrong usage or input
    3     a host failed
    4     a host was unreachable, and none failed
    5     nothing matched: no host was touched
    6     the lab or this machine's environment is at fault
    7     the speech service answered an error, or did not answer
    8     verification failed
    9     a bundle or a host is not fit for what was asked
    130   interrupted
    ====  =================================================================
    """

    OK = 0
    INTERNAL = 1
    USAGE = 2
    HOST_FAILED = 3
    UNREACHABLE = 4
    NOTHING_MATCHED = 5
    LAB = 6
    SERVICE = 7
    VERIFY_FAILED = 8
    UNFIT = 9
    INTERRUPTED = 130


EXIT_CODE_MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "success",
    ExitCode.INTERNAL: "internal error, a bug in mayafleet (MAYAFLEET_DEBUG=1 shows where)",
    ExitCode.USAGE: "wrong usage or input",
    ExitCode.HOST_FAILED: "a host failed",
    ExitCode.UNREACHABLE: "a host was unreachable, and none failed",
    ExitCode.NOTHING_MATCHED: "nothing matched: no host was touched",
    ExitCode.LAB: "the lab or this machine's environment is at fault",
    ExitCode.SERVICE: "the speech service answered an error, or did not answer",
    ExitCode.VERIFY_FAILED: "verification failed",
    ExitCode.UNFIT: "a bundle or a host is not fit for what was asked",
    ExitCode.INTERRUPTED: "interrupted",
}


class FleetError(Exception):
    """An error for the operator: one sentence saying what is wrong, and one saying what to do next."""

    def __init__(self, message: str, next_step: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.exit_code = exit_code

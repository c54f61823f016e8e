"""Every error that edc raises on purpose, and the exit code each one ends a command with.

    EdcError
    ├── RequestError (exit 2)      the request is wrong; nothing was changed
    │   ├── RecipeError            a recipe or an override does not make sense
    │   ├── DataError              a data set is missing, unreadable or not what the recipe says
    │   ├── CheckpointError        weights that do not fit the network they are meant for
    │   ├── RunError               a run folder that is missing, unfinished or somebody else's
    │   ├── ArtifactError          an exported artifact that is missing, damaged or not to be trusted
    │   └── NotInstalledError      an optional package is asked for and absent
    └── FailedError (exit 1)       the request was fine; carrying it out did not work
        ├── DivergedError          the loss became NaN or infinite
        ├── ParityError            an exported file does not compute what the network computes
        ├── DiskError              the disk is full, or nothing may be written there
        └── EngineError            an engine could not be built or loaded

`Interrupted` is no error: a signal asked to stop, and it says whether the state was saved. Ctrl-C exits 130, as shells
do; SIGTERM and SIGUSR1, which come from a scheduler, exit 75 (EX_TEMPFAIL of sysexits.h): run the same command again.

Messages name the field or file first, then what was found, what was expected and what to do. `edc.cli.main` is the only
place that catches `EdcError`; anything else that escapes is a bug and keeps its traceback.
"""

import reprlib
import shlex
import signal

__all__ = [
    "INTERRUPTED",
    "RUN_AGAIN",
    "ArtifactError",
    "CheckpointError",
    "DataError",
    "DiskError",
    "DivergedError",
    "EdcError",
    "EngineError",
    "FailedError",
    "Interrupted",
    "NotInstalledError",
    "ParityError",
    "RecipeError",
    "RequestError",
    "RunError",
    "cut",
    "edc_command",
    "first_line",
    "shown",
]


MOST_CHARACTERS = 8000
"""Of a message, whatever the file that it is about repeats or names."""
INTERRUPTED = 130
"""What shells exit with after Ctrl-C."""
RUN_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h: a scheduler should requeue the job."""


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGUSR1: the same command continues from what is on disk.

    Like KeyboardInterrupt it is no Exception: it may come while a library is at work. Code there that catches all
    exceptions (torch.compile does) would turn the request to stop into another failure.

    Args:
        saved: whether all work is on disk; if not, the work since the last checkpoint is lost.
    """

    def __init__(self, signal_number: int, *, saved: bool) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.saved = saved
        self.exit_code = INTERRUPTED if signal_number == signal.SIGINT else RUN_AGAIN


class EdcError(Exception):
    """Base of all deliberate errors; `exit_code` is what the command line ends with."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(cut(message, MOST_CHARACTERS))


class RequestError(EdcError):
    exit_code = 2


class RecipeError(RequestError):
    pass


class DataError(RequestError):
    pass


class CheckpointError(RequestError):
    pass


class RunError(RequestError):
    pass


class ArtifactError(RequestError):
    pass


class NotInstalledError(RequestError):
    pass


class FailedError(EdcError):
    exit_code = 1


class DivergedError(FailedError):
    pass


class ParityError(FailedError):
    pass


class DiskError(FailedError):
    pass


class EngineError(FailedError):
    pass


def edc_command(*words: object) -> str:
    """Returns the command `edc` with these words as a shell takes it: a path with a blank in it is quoted."""
    return shlex.join(["edc", *map(str, words)])


def first_line(error: BaseException) -> str:
    """Returns the first line of what a library's error says, for a message of ours; its kind if it says nothing."""
    return cut(str(error).strip().splitlines()[0], 400) if str(error).strip() else type(error).__name__


def cut(text: str, most: int) -> str:
    """Returns the text, without its middle if it is longer than `most` characters."""
    if len(text) <= most:
        return text
    left_out = f" [... {len(text)} characters ...] "
    tail = (most - len(left_out)) // 4
    return f"{text[: most - len(left_out) - tail]}{left_out}{text[len(text) - tail :]}"


def shown(value: object) -> str:
    """Returns `repr(value)` as a message shows what it found in a file: cut, and made without writing all of it out."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict, _SHORT.maxset = 3, 6, 6, 6, 6

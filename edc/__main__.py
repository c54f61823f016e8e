"""The command `edc`, also as `python -m edc` for launchers: torchrun and accelerate.

Signals are taken first: a scheduler may send one while torch is still being imported.
"""

import sys

from edc.errors import Interrupted
from edc.system.signals import ignore_stops, stop_at_once

__all__ = ["main"]


def main() -> None:
    """Runs the command line, from its first import to its exit code."""
    try:
        with stop_at_once() as received:
            from edc.cli.main import main as run

            run(received)
    except Interrupted as interrupted:  # between the two
        sys.exit(interrupted.exit_code)
    finally:
        ignore_stops()


if __name__ == "__main__":
    main()

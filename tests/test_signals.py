"""Requests to stop: never raised while a module is imported, never lost, whatever a library makes of them."""

import contextlib
import signal
import subprocess
import sys
import time

import pytest
from processes import environment

from edc.errors import Interrupted
from edc.system import signals
from edc.system.signals import stop_at_once, stop_requests

MODULE = """
import signal
signal.raise_signal(signal.{name})
finished = True
"""


@pytest.mark.parametrize(
    ("name", "raised"), [("SIGTERM", Interrupted), ("SIGUSR1", Interrupted), ("SIGINT", KeyboardInterrupt)]
)
def test_signal_during_an_import_waits_for_its_end(tmp_path, monkeypatch, name, raised):
    module = f"imported_under_{name.lower()}"
    (tmp_path / f"{module}.py").write_text(MODULE.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    received: list[int] = []

    def waits() -> None:
        with stop_at_once() as came:
            assert __import__(module).finished
            received.extend(came)
            time.sleep(20)

    started = time.monotonic()
    with pytest.raises(raised):
        waits()
    assert received == [signal.Signals[name]]
    assert time.monotonic() - started < 10


def test_signal_that_was_swallowed_comes_again_until_something_ends(monkeypatch):
    monkeypatch.setattr(signals, "SECONDS_UNTIL_AGAIN", 0.05)
    received: list[int] = []

    def swallows() -> None:
        with stop_at_once() as came:
            with contextlib.suppress(Interrupted):
                signal.raise_signal(signal.SIGTERM)
            received.extend(came)
            time.sleep(20)

    with pytest.raises(Interrupted):
        swallows()
    assert received == [signal.SIGTERM]


def test_loop_that_looks_takes_over_a_signal_that_waited(tmp_path, monkeypatch):
    (tmp_path / "imported_before_the_loop.py").write_text(MODULE.format(name="SIGTERM"))
    monkeypatch.syspath_prepend(tmp_path)
    with stop_at_once():
        __import__("imported_before_the_loop")
        with stop_requests() as stop:
            deadline = time.monotonic() + 20
            while not stop and time.monotonic() < deadline:
                time.sleep(0.01)
            assert stop == [signal.SIGTERM]


COMMAND = """
import signal, sys
import edc.__main__
from unittest.mock import patch
import edc.cli.main

def app():
    try:
        signal.raise_signal(signal.{name})
    except BaseException:
        raise {error}

with patch.object(edc.cli.main, "app", app):
    edc.__main__.main()
"""


@pytest.mark.parametrize(
    ("name", "error", "code"),
    [
        ("SIGTERM", "ImportError('numpy: partially initialized')", 75),
        ("SIGUSR1", "RecursionError", 75),
        ("SIGTERM", "edc.cli.main.EdcError('the worker died')", 75),
        ("SIGINT", "RuntimeError('x')", 130),
    ],
)
def test_error_that_a_library_makes_of_a_signal_ends_as_the_signal(name, error, code):
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(name=name, error=error)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert f"stopped by {name}" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_of_ours_does_not_wait_for_workers_that_ignore_signals():
    """Its traceback holds the loader, and Python waited at its end for workers that never end: not even SIGTERM did."""
    program = """
import edc.cli.main as cli
from torch.utils.data import DataLoader
from edc.data.batches import _begin_worker

def run():
    batches = iter(DataLoader(list(range(64)), num_workers=2, worker_init_fn=_begin_worker))
    next(batches)
    raise KeyError("a bug")

cli._run = run
cli.main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "KeyError: 'a bug'" in ended.stderr

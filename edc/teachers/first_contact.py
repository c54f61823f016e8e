"""Opens teachers of strangers in a process of its own first, with limits on time and memory.

A whole network is an unknown amount of work: TorchScript may loop, an ONNX operator may ask for all memory, a damaged
file may end the process that opens it. So each is loaded and tried on images in a process that can be killed, once per
content; only then does this process open it. That is no prison: a program that `trust: true` lets in has the user's
rights, there and here.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

import edc
from edc import errors
from edc.data import DataSet
from edc.errors import CheckpointError, EdcError, FailedError, cut
from edc.recipe import Recipe
from edc.system.files import sha256_of, user_cache, write_atomically
from edc.teachers.formats import trusted_format

__all__ = ["meet_apart"]

SECONDS, SECONDS_PER_GB = 60.0, 60.0
MORE_BYTES, BYTES_PER_BYTE = 2 << 30, 8
"""What a file may need beside the libraries: so much, and so much per byte of it."""
MOST_ANSWER_BYTES = 1 << 20
START_SECONDS = 300.0
"""The libraries may load slowly from a network drive."""


def meet_apart(recipe: Recipe, data: DataSet) -> None:
    """Opens the whole networks among the recipe's checkpoints in another process, unless that went well before.

    Raises:
        EdcError: what opening one raised, there.
        CheckpointError: a file that may not be opened, needs more time or memory than it should, or ends the process.
    """
    facts = {
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "class_names": data.class_names,
        "image_shape": data.image_shape,
        "mean": data.mean,
        "std": data.std,
    }
    unknown = [member for member in range(len(recipe.teachers.checkpoints)) if _is_unknown(facts, recipe, member)]
    if not unknown:
        return
    with _Other(facts) as other:
        for member in unknown:
            path = recipe.teachers.checkpoints[member].file
            assert path is not None  # the libraries' own networks are known
            other.open(member, path)
            _remember(_mark(facts, path, member))


def _is_unknown(facts: dict[str, Any], recipe: Recipe, member: int) -> bool:
    checkpoint = recipe.teachers.checkpoints[member]
    path = checkpoint.file
    if path is None or not path.is_file():
        return False  # loading says so
    kind = trusted_format(checkpoint, source=f"teachers.checkpoints.{member}: {path}")
    return kind != "state_dict" and not _mark(facts, path, member).is_file()


def _mark(facts: dict[str, Any], path: Path, member: int) -> Path:
    """Returns the file that says that this content was opened before, as it is to be opened now."""
    checkpoint = {**facts["recipe"]["teachers"]["checkpoints"][member], "file": sha256_of(path)}
    others = [len(facts["class_names"]), facts["image_shape"], edc.__version__, torch.__version__]
    key = hashlib.sha256(json.dumps([checkpoint, *others], sort_keys=True).encode()).hexdigest()
    return user_cache("opened") / key


def _remember(mark: Path) -> None:
    try:
        with write_atomically(mark) as temporary:
            temporary.touch()
    except (OSError, FailedError):
        return  # no home to write to: the next command opens it apart again


class _Other:
    """The process that opens files, one after another: a line of JSON each way."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process, whose last words it keeps
        home = str(Path(edc.__file__).parents[1])
        path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edc.teachers.contact_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            stderr=self._said,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out, self._before_bytes = self._process.stdin, self._process.stdout, 0
        os.set_blocking(self._out.fileno(), False)
        self._say(facts)

    def __enter__(self) -> "_Other":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()
        self._said.close()

    def open(self, member: int, path: Path) -> None:
        """Raises what the other process raises when it opens this teacher, or that it did not survive."""
        source, gigabytes = f"teachers.checkpoints.{member}: {path}", path.stat().st_size / 1e9
        if not self._before_bytes:
            self._answer(source, START_SECONDS, 1 << 62)
            self._before_bytes = psutil.Process(self._process.pid).memory_info().rss
        self._say(member)
        most_bytes = MORE_BYTES + BYTES_PER_BYTE * path.stat().st_size
        answer = self._answer(source, SECONDS + SECONDS_PER_GB * gigabytes, self._before_bytes + most_bytes)
        if answer["error"]:
            kind: type[EdcError] = getattr(errors, answer["error"])
            raise kind(answer["message"])

    def _say(self, message: Any) -> None:
        try:
            self._in.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            return  # it has ended; the answer that does not come says so

    def _answer(self, source: str, most_seconds: float, most_bytes: int) -> dict[str, Any]:
        """Returns the next line of the other process, or kills it and says why there is none."""
        line, end = b"", time.monotonic() + most_seconds
        while not line.endswith(b"\n"):
            chunk = self._out.read(1 << 16)  # None: nothing yet
            if chunk == b"" or len(line) > MOST_ANSWER_BYTES:
                raise CheckpointError(f"{source}: opening it ended the process that did ({self._cause()})")
            line += chunk or b""
            if chunk is None:
                time.sleep(0.02)
                if time.monotonic() > end:
                    raise CheckpointError(f"{source}: was not opened and tried within {most_seconds:.0f} s; not used")
                if self._bytes_held() > most_bytes:
                    found = f"needs more than {most_bytes / 1e9:.1f} GB to be opened and tried"
                    raise CheckpointError(f"{source}: {found}; not used")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _bytes_held(self) -> int:
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:  # it has just ended
            return 0

    def _cause(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        if code < 0:
            return signal.Signals(-code).name
        self._said.seek(0)
        said = self._said.read(1 << 20).decode(errors="replace").strip().splitlines()
        return f"exit code {code}" + (f"; {cut(said[-1], 300)}" if said else "")

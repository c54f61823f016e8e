"""What strangers' files may look like: documents and bytes that were good before something was done to them."""

import copy
import os
import resource
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from edc.errors import EdcError

__all__ = ["cases", "changed_bytes", "changed_document", "held", "strange"]

NUM_CASES = int(os.environ.get("EDC_FUZZ", "0"))
"""Of `make fuzz`; 0: the few, always the same, of the default suite."""
MOST_SECONDS, MOST_BYTES, MOST_CHARACTERS = 10.0, 1 << 30, 8000


def cases(default: int) -> Any:
    """Returns the settings of a test: `default` cases, or as many as `make fuzz` says."""
    return settings(
        max_examples=NUM_CASES or default,
        derandomize=not NUM_CASES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def held(action: Callable[[], object]) -> None:
    """Checks that `action` ends well or with an `EdcError`, in 10 s of work, 1 GB more and few words at most."""
    worked, start, before = time.process_time(), time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = "read"
    try:
        action()
    except EdcError as error:
        message = str(error)
    assert 0 < len(message) <= MOST_CHARACTERS
    assert time.process_time() - worked < MOST_SECONDS
    assert time.monotonic() - start < 6 * MOST_SECONDS  # of a busy machine: it waited for something
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 5),
    st.sampled_from([2**31, 2**63 - 1, -(2**63), 0.5, 1e-300, 1e308, float("inf"), float("nan")]),
    st.sampled_from(["", "0x_", "2001-99-99", "../x", "/dev/zero", "a" * 3000, "²", "1e999", "~", "wrn10x0", "timm/"]),
    st.text(max_size=6),
)
strange = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed_document(draw: Any, good: Any) -> Any:
    """Draws the document with one to four of its parts replaced, left out, repeated or added."""
    document = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 4))):
        at = document
        while isinstance(at, dict | list) and at:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and at[key] and draw(st.integers(0, 3)):
                at = at[key]
                continue
            what = draw(st.sampled_from(["replace", "replace", "leave out", "add"]))
            if what == "replace":
                at[key] = draw(strange)
            elif what == "leave out":
                del at[key]
            elif isinstance(at, dict):
                at[draw(st.text(max_size=6))] = draw(strange)
            else:
                at.append(draw(st.sampled_from([draw(strange), copy.deepcopy(at[key])])))
            break
    return document


@st.composite
def changed_bytes(draw: Any, good: bytes) -> bytes:
    """Draws the bytes with one to six places overwritten, cut out or filled in, or cut short."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        what = draw(st.sampled_from(["set", "set", "cut out", "fill in", "cut short"]))
        if what == "set" and content:
            content[place] = draw(st.integers(0, 255))
        elif what == "cut out":
            del content[place : place + draw(st.integers(1, 16))]
        elif what == "fill in":
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif draw(st.integers(0, 5)) == 0:
            del content[place:]
    return bytes(content)

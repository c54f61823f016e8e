"""One line of a library's error, whatever it says."""

import numpy as np
import pytest
import torch

from edc.benchmark.backends.onnxruntime_cpu import one_line
from edc.benchmark.backends.torch_eager import TorchLoaded
from edc.errors import FailedError, first_line
from edc.runs.networks import SubjectNetworks


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("shapes differ\nat aten/src/line.cpp"), "shapes differ"),
        (RuntimeError("\n  shapes differ  \n"), "shapes differ"),
        (MemoryError(), "MemoryError"),
        (ValueError(" \n "), "ValueError"),
    ],
)
def test_first_line_of_an_error_is_its_kind_where_it_says_nothing(error: Exception, line: str):
    assert first_line(error) == line
    assert one_line(error) == line


def test_number_of_an_onnxruntime_error_is_left_out():
    assert one_line(RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : rank 3\nmore")) == (
        "INVALID_ARGUMENT : rank 3"
    )


def test_memory_that_runs_out_without_a_word_is_a_reason_not_to_run():
    class Greedy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise MemoryError

    loaded = TorchLoaded(SubjectNetworks((Greedy(),)))
    with pytest.raises(FailedError, match=r"^torch cannot run batch 2: MemoryError$"):
        loaded.infer(np.zeros((2, 3, 4, 4), np.float32))

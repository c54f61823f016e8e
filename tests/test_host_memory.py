"""Memory that a training on the CPU keeps: its steps fault in nothing anew, and afterwards the system has it back."""

import os
import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif("linux" not in sys.platform, reason="glibc's allocator is looked at")

PAGES = (48 << 20) // resource.getpagesize()
SCRIPT = """
import resource
import psutil, torch
from edc.system.memory import freed_memory_kept

def faults_of_steps(number, megabytes=48):
    faults = []
    for _ in range(number):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(megabytes << 18)  # freed at once
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return faults

process = psutil.Process()
torch.ones(1)
start = process.memory_info().rss
print(*faults_of_steps(3))
with freed_memory_kept():
    print(*faults_of_steps(40))
    print(process.memory_info().rss - start)
print(process.memory_info().rss - start)
print(*faults_of_steps(3, 512))  # more than any gap that is left in the heap
"""


def faults_and_memory(**environment: str) -> list[list[int]]:
    called = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    lines = [[int(word) for word in line.split()] for line in called.stdout.splitlines()]
    if min(lines[0]) < PAGES / 2:
        pytest.skip("this kernel maps huge pages unasked, so there is less than a fault a page")
    return lines


def test_freed_memory_is_kept_within_the_block_and_given_back_after_it():
    _, within, kept, left, after = faults_and_memory()
    assert within[0] > PAGES / 2  # the first step takes its memory from the system
    assert max(within[-5:]) < PAGES / 50  # the heap has settled after a few, wherever small blocks came to lie
    assert kept[0] > 40 << 20
    assert left[0] < 30 << 20
    assert min(after) > PAGES * 512 / 48 / 2  # mapped anew each time, as before


def test_what_the_user_set_stays():
    _, within, *_ = faults_and_memory(MALLOC_MMAP_THRESHOLD_="1048576")
    assert min(within) > PAGES / 2


LOADING = """
import resource
import torch
from edc.data.batches import _begin_worker
from edc.system.memory import freed_memory_kept

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(256 << 18)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with freed_memory_kept():
    print(min(torch.utils.data.DataLoader(Images(), batch_size=None, num_workers=1, worker_init_fn=_begin_worker)))
"""


@pytest.mark.slow
def test_processes_that_load_images_keep_nothing():
    """Forked from a fresh process: a gap in the heap of this one, after a thousand tests, may hold 256 MB."""
    faults_and_memory()  # skips where faults say nothing
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > PAGES * 256 / 48 / 2  # 0 once a heap that keeps everything has settled

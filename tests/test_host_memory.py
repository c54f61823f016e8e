"""Memory that a training on the CPU keeps: its steps fault in nothing anew, and afterwards the system has it back."""

import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif("linux" not in sys.platform, reason="glibc's allocator is looked at")

SCRIPT = """
import resource
import psutil, torch
from edc.host_memory import freed_memory_kept

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


def test_freed_memory_is_kept_within_the_block_and_given_back_after_it():
    text = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    before, within, kept, left, after = ([int(word) for word in line.split()] for line in text.splitlines())
    pages = (48 << 20) // resource.getpagesize()
    if min(before) < pages / 2:
        pytest.skip("this kernel maps huge pages unasked, so there is less than a fault a page")
    assert within[0] > pages / 2  # the first step takes its memory from the system
    assert max(within[-5:]) < pages / 50  # the heap has settled after a few, wherever small blocks came to lie
    assert kept[0] > 40 << 20
    assert left[0] < 30 << 20
    assert min(after) > pages * 512 / 48 / 2  # mapped anew each time, as before

"""Memory that a training on the CPU keeps: its steps fault in nothing anew, and afterwards the system has it back."""

import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif("linux" not in sys.platform, reason="glibc's allocator is looked at")

SCRIPT = """
import resource, sys
import psutil, torch
from edc.host_memory import freed_memory_kept

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(32 << 20)  # 128 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

process = psutil.Process()
torch.ones(1)
start = process.memory_info().rss
print(faults_of_a_step(), faults_of_a_step())
with freed_memory_kept():
    print(faults_of_a_step(), faults_of_a_step())
    print(process.memory_info().rss - start)
print(process.memory_info().rss - start)
print(faults_of_a_step(), faults_of_a_step())
"""


def test_freed_memory_is_kept_within_the_block_and_given_back_after_it():
    text = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    before, within, kept, left, after = ([int(word) for word in line.split()] for line in text.splitlines())
    pages = (128 << 20) // resource.getpagesize()
    # Where the kernel uses huge pages by itself a fault is worth 512 pages.
    if min(before) < pages / 2:
        pytest.skip("this kernel maps huge pages unasked: faults say nothing")
    assert min(after) > pages / 2
    assert within[0] > pages / 2
    assert within[1] < pages / 50
    assert kept[0] > 100 << 20
    assert left[0] < 30 << 20

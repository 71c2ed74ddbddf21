"""Freed memory stays with the process."""

import os
import platform
import subprocess
import sys

import pytest

# How many pages the kernel hands out while 25 tensors of 8 MB are made and freed, ten times over.
PROGRAM = """
import resource, sys, torch
from balms_det.runtime.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def iteration():
    tensors = [torch.ones(2 * 1024 * 1024) for _ in range(25)]
for _ in range(3):
    iteration()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    iteration()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.e2e
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such key")
def test_freed_memory_serves_the_next_iteration():
    # Where it decides for itself, what glibc gives back depends on what happens to lie above it.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    pages = {}
    for mode in ("as it is", "keep"):
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        pages[mode] = int(done.stdout)
    assert pages["keep"] < pages["as it is"] / 10

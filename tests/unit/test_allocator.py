import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from utils.allocator import keep_freed_memory
keep_freed_memory()
def step():
    maps = [torch.zeros(2 << 20) for _ in range(8)]  # 8 MB each
for _ in range(12):
    step()  # the heap settles
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_second_step_takes_no_new_memory(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    # 64 MB are 16,384 pages, of which at least 2,048 were taken anew before
    pages = int(subprocess.check_output([sys.executable, "-c", STEPS]))
    assert pages < 100

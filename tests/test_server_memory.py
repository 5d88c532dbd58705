"""One pool of memory for all threads of a server (glibc)."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys, threading
from tortoise_rt.server.memory import keep_memory_together

if sys.argv[1] == "together":
    keep_memory_together()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
meet = threading.Barrier(8)

def work():
    held = libc.malloc(5000)
    meet.wait()  # all at once, so that none can take another's pool
    libc.free(held)

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other pools")
@pytest.mark.parametrize(
    ("how", "setting", "least", "most"),
    [
        ("together", None, 1, 1),
        ("apart", None, 2, 99),  # without it there would be more
        ("together", "4", 2, 4),  # the user's own setting holds
    ],
)
def test_threads_share_a_pool(how: str, setting: str | None, least: int, most: int) -> None:
    surroundings = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    if setting:
        surroundings["MALLOC_ARENA_MAX"] = setting
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], env=surroundings, capture_output=True, text=True, check=True
    )
    assert least <= told.stdout.count("<heap nr") <= most

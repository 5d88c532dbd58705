"""NVIDIA's driver asked what GPUs there are, for those who have no cuda-bindings."""

from __future__ import annotations

import ctypes
import sys

_MAJOR, _MINOR = 75, 76  # cuda.h's CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def find() -> ctypes.CDLL | None:
    """The driver, not started yet; None where there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def gpus(driver: ctypes.CDLL) -> list[tuple[str, str]]:
    """Name and compute capability of each GPU of a driver that was started."""
    count, name, value = ctypes.c_int(0), ctypes.create_string_buffer(128), ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for number in range(count.value):  # which is its handle too
        driver.cuDeviceGetName(name, len(name), number)
        capability = []
        for attribute in (_MAJOR, _MINOR):
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, number)
            capability.append(str(value.value))
        found.append((name.value.decode(errors="replace"), ".".join(capability)))
    return found


def gpu_names() -> list[str]:
    """The names of this machine's NVIDIA GPUs; none without a driver that starts."""
    driver = find()
    return [] if driver is None or driver.cuInit(0) else [name for name, _ in gpus(driver)]

"""Kernels that a bundle carries compiled for several kinds of GPU: choosing, checking and loading those for this one."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from ctypes import c_int32, c_uint64
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

from ..errors import BundleError, EngineError
from ..kernels.ahead import Carried, carried
from .device import CType, Device, Kernel

if TYPE_CHECKING:
    from ..bundle import Bundle

WARP = 32  #: threads
EXACT = 9  #: from this major version on, Triton compiles for one compute capability alone ("sm_90a")
ALONE = ("8.7",)  #: of Tegra, which does not run what is made for others
MOST_SHARED = 227 << 10  #: bytes of memory that threads of a block share, of any GPU so far

MOST_SPARE = 4  #: pointers that Triton adds to a kernel's arguments, to memory that these do not use
_VERSION = re.compile(r"[0-9]{1,2}\.[0-9]")

log = logging.getLogger("tortoise_rt")


def load_kernels(bundle: Bundle, device: Device) -> dict[str, Kernel]:
    """The kernels of a bundle for this GPU by name; none, with a warning, where it carries none that run here.

    Raises BundleError for a bundle that says of them what cannot be.
    """
    wanted = carried(bundle.dims)
    made = {name: _made_for(bundle, device, name, kernel) for name, kernel in wanted.items()}
    if None in made.values():
        log.warning(
            "%s carries no kernels for %s (compute capability %s) and this version: the host takes part in every code "
            "and every diffusion step. Export the bundle again where Triton is installed (pip install 'tortoise-rt[kernels]')",
            bundle.folder, device.name, device.compute_capability,
        )  # fmt: skip
        return {}
    try:
        return {name: _load(bundle, device, kernel, made[name]) for name, kernel in wanted.items()}
    except EngineError as error:
        log.warning(
            "the kernels of %s do not load here (%s): the host takes part in every code and every diffusion step. "
            "A newer driver may know them",
            bundle.folder, error,
        )  # fmt: skip
        return {}


def nearest(capability: str, offered: Iterable[str]) -> str | None:
    """Of the compute capabilities that something was compiled for, the one that a GPU of ``capability`` runs best."""
    major, minor = map(int, capability.split("."))
    known = [tuple(map(int, name.split("."))) for name in offered]
    later = major < EXACT and capability not in ALONE
    able = [(m, n) for m, n in known if m == major and (n == minor or (n < minor and later))]
    return "{}.{}".format(*max(able)) if able else None


def _made_for(bundle: Bundle, device: Device, name: str, kernel: Carried) -> Any:
    """What was compiled of a kernel for this GPU; None if nothing was, or from something else."""
    entries = bundle.manifest.get("kernels")
    entry = entries.get(name) if isinstance(entries, dict) else None
    compiled = entry.get("compiled") if isinstance(entry, dict) else None
    if not isinstance(compiled, dict) or entry != kernel.described() | {"compiled": compiled}:
        return None
    chosen = nearest(device.compute_capability, filter(_VERSION.fullmatch, compiled))
    return None if chosen is None else compiled[chosen]


def _load(bundle: Bundle, device: Device, kernel: Carried, made: Any) -> Kernel:
    said: dict[str, Any] = made if isinstance(made, dict) else {}
    file, shared, spare = said.get("file", ""), said.get("shared", -1), said.get("spare", -1)
    fine = shared in range(MOST_SHARED + 1) and spare in range(MOST_SPARE + 1)
    if not isinstance(file, str) or file not in bundle.manifest["files"] or not fine:
        raise BundleError(f"{bundle.folder} says of a kernel {short(made)}, which cannot be: export it again")
    bundle.check_unchanged()
    cubin = (bundle.folder / file).read_bytes()
    bundle.check_unchanged()
    return device.load(cubin, kernel.function, argument_types(kernel, spare), kernel.warps * WARP, shared)


def argument_types(kernel: Carried, spare: int) -> list[CType]:
    """What ctypes passes a kernel's arguments as, with ``spare`` pointers that Triton adds."""
    types: list[CType] = [c_int32 if type_ == "i32" else c_uint64 for type_ in kernel.arguments.values()]
    return types + [c_uint64] * spare

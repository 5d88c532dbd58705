"""The kernels that a bundle carries, compiled by Triton for the GPUs that matter; none need be there."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tortoise_rt.backends.cubins import WARP, nearest
from tortoise_rt.errors import EngineError
from tortoise_rt.kernels.ahead import Carried, carried
from tortoise_rt.spec import Dims

log = logging.getLogger("tortoise_rt")
CAPABILITIES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0", "12.1")


def can_compile() -> bool:
    """Whether Triton is here."""
    return importlib.util.find_spec("triton") is not None


def compile_kernels(
    dims: Dims, capabilities: Iterable[str], folder: Path, tell: Callable[[str], None] = lambda what: None
) -> dict[str, Any]:
    """Compile the kernels of a model into ``folder``; -> what the manifest says of them.

    For each of the ``capabilities`` (those of CAPABILITIES, if none are named) what runs there best; nothing, with a
    warning, where nothing would.
    """
    named = [*capabilities] or CAPABILITIES
    wanted = {nearest(name, CAPABILITIES) for name in named} - {None}
    if not wanted:
        log.warning(
            "no kernels are compiled for compute capability %s: the host takes part", ", ".join(named)
        )
        return {}
    said = {}
    for name, kernel in carried(dims).items():
        compiled = {}
        for capability in (known for known in CAPABILITIES if known in wanted):
            tell(f"{name} for {capability}")
            made = _compile(kernel, int(capability.replace(".", "")))
            path = folder / f"{name}.sm{capability.replace('.', '')}.cubin"
            path.write_bytes(made.asm["cubin"])
            compiled[capability] = {
                "file": path.name,
                "shared": made.metadata.shared,
                "spare": _spare(kernel, made),
            }
        said[name] = kernel.described() | {"compiled": compiled}
    return said


def _compile(kernel: Carried, architecture: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"tortoise_rt.kernels.{kernel.module}"), kernel.function)
    names = [parameter.name for parameter in function.params if not parameter.is_constexpr]
    if names != list(kernel.arguments):
        raise EngineError(f"kernel {kernel.function} takes {names}, not {list(kernel.arguments)}")
    constants = dict(kernel.constants)
    signature = {p.name: kernel.arguments.get(p.name, "constexpr") for p in function.params}
    attributes = {
        (function.arg_names.index(name),): [["tt.divisibility", multiple]]
        for name, multiple in kernel.multiples.items()
    }
    source = ASTSource(function, signature, constants, attributes)
    target = GPUTarget("cuda", architecture, WARP)
    return triton.compile(source, target=target, options={"num_warps": kernel.warps})


def _spare(kernel: Carried, made: Any) -> int:
    """How many pointers Triton added to a kernel's arguments; raises EngineError for one that uses them."""
    if made.metadata.global_scratch_size or getattr(made.metadata, "profile_scratch_size", 0):
        raise EngineError(f"kernel {kernel.function} wants memory of its own, which nobody gives it")
    entry = re.search(r"\.entry[^(]*\(([^)]*)\)", made.asm["ptx"])
    count = entry[1].count(".param") if entry else -1
    spare = count - len(kernel.arguments)
    if spare < 0:
        raise EngineError(f"kernel {kernel.function} takes {count} arguments, of {len(kernel.arguments)}")
    return spare

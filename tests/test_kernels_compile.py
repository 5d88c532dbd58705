"""Every kernel compiles for the GPUs that matter, without one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="needs PyTorch")
if (
    importlib.util.find_spec("triton") is None
):  # not imported: it decides then whether kernels are interpreted
    pytest.skip("needs Triton", allow_module_level=True)

#: compute capability -> kB of memory that the threads of a block may share
CAPABILITIES = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}

#: run by a Python of its own: where Triton interprets kernels, as beside it here, it compiles none
PROGRAM = """
import sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from tortoise_rt.kernels import decode_attention, denoising_update, draw_codes, group_norm, launch, location_variable, relative_attention, rows_linear

TYPES = {torch.float16: "*fp16", torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64",
         torch.int32: "*i32", torch.uint8: "*u8"}

def compile_instead(kernel, *args, grid, warmup, **options):
    names = [parameter.name for parameter in kernel.params]
    given = dict(zip(names, args)) | {name: options.pop(name) for name in list(options) if name in names}
    constants = {p.name: given[p.name] for p in kernel.params if p.is_constexpr}
    kinds = {int: "i32", float: "fp32"}
    signature = {n: "constexpr" if n in constants else TYPES[v.dtype] if hasattr(v, "dtype") else kinds[type(v)]
                 for n, v in given.items()}
    options = {name: value for name, value in options.items() if name in ("num_warps", "num_stages", "launch_pdl")}
    made = triton.compile(ASTSource(kernel, signature, constants), target=target, options=options)
    print(capability, kernel.__module__.split(".")[-1] + kernel.__name__, len(made.asm["cubin"]), made.metadata.shared)

JITFunction.run = compile_instead
half = torch.float16
capability, shared = map(int, sys.argv[1:])
target = GPUTarget("cuda", capability, 32)
for module in (decode_attention, draw_codes, rows_linear):
    early = capability >= 90
    module.early_start = lambda tensor: {"EARLY": early, **({"launch_pdl": True} if early else {})}
for module in (relative_attention, rows_linear):
    module.roomy = lambda tensor: shared > launch.ROOMY
vector = lambda *shape: torch.zeros(shape, dtype=half)
for half in (torch.float32, torch.float16):
    relative_attention.relative_attention(vector(2, 100, 3072), torch.zeros(16, 129), vector(2, 100, 1024))
    rows_linear.rows_linear(torch.zeros(16, 4096), vector(1024, 4096), vector(1024), torch.zeros(16, 1024))
for rows, size, norm in ((1, 1024, True), (1, 1024, False), (1, 4096, False), (16, 1024, True), (16, 1024, False)):
    x, weight, bias = torch.zeros(rows, size), vector(1024, size), vector(1024)
    rows_linear.rows_linear(x, weight, bias, torch.zeros(rows, 1024), (vector(size),) * 2 if norm else None)
whole = lambda *shape: torch.zeros(shape, dtype=torch.int64)
decode_attention.decode_attention(vector(2, 3072), whole(5), whole(2), 3, vector(1), 16, vector(2, 1024))
draw_codes.draw_codes(torch.zeros(2, 8194), torch.zeros(2, 8194, dtype=torch.uint8), torch.zeros(2, 14, dtype=torch.float64),
                      whole(5, 2), whole(2, 8), (torch.zeros(2, dtype=torch.int32), torch.zeros(2, 128), torch.zeros(2, 128, dtype=torch.int32)), 8192, 8193)
group_norm.group_norm(vector(2, 100, 1024), vector(1024), vector(1024), 32, vector(2, 100, 3072), vector(2, 2048), True)
for hop in (8, 256):
    samples, of_frames = torch.zeros(1, 32, 5 * hop), torch.zeros(1, 5, 4, 32, 64, 3).permute(0, 2, 3, 4, 5, 1)
    location_variable.location_variable(samples, samples, samples[0, :, 0], of_frames[:, 1], torch.zeros(1, 64, 5))
mel = torch.zeros(1, 100, 50)
denoising_update.denoising_update(mel, mel, vector(2, 200, 50), mel, torch.zeros(8))
"""


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_kernel_compiles(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    most = CAPABILITIES[capability] << 10
    command = [sys.executable, "-c", PROGRAM, str(capability), str(most)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [line.split() for line in done.stdout.splitlines()]
    assert len(made) == 18 and all(int(size) > 1000 for _, _, size, _ in made)
    assert {name: int(shared) for _, name, _, shared in made if int(shared) > most} == {}

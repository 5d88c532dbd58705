"""Every kernel that the torch backend launches compiles for the GPUs that matter, and fits their memory, without one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs PyTorch")
if (
    importlib.util.find_spec("triton") is None
):  # not imported: it decides then whether kernels are interpreted
    pytest.skip("needs Triton", allow_module_level=True)

if not version("triton").startswith("3.6."):
    pytest.skip("looks into Triton 3.6: pip install 'triton==3.6.0'", allow_module_level=True)

#: compute capability -> kB of memory that the threads of a block may share
CAPABILITIES = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99, 121: 99}
FP32, FP16, BF16 = "official/fp32/llir", "official/fp16/cubin", "official/bf16/llir"
DEMO = "demo/fp32/llir"  #: whose diffusion has wide heads, of interest where there is little memory
#: those of a major version are compiled for alike: one of each has more than the type that takes most memory
SWEEPS = {89: (FP32, FP16, BF16, DEMO), 90: (FP32, FP16, BF16), 100: (FP32, FP16), 120: (FP32, FP16, DEMO)}
KERNELS = {
    "rows_linear._kernel", "decode_attention._kernel", "draw_codes._gather", "draw_codes._draw_among_few",
    "draw_codes._draw_among_all", "group_norm._statistics", "group_norm._apply", "relative_attention._kernel",
    "denoising_update._kernel", "location_variable._kernel",
}  # fmt: skip


@pytest.mark.parametrize("capability", sorted(CAPABILITIES, key=lambda known: known not in SWEEPS))
def test_every_kernel_compiles(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    most = CAPABILITIES[capability] << 10
    wanted = SWEEPS.get(capability, (FP32,))
    program = Path(__file__).with_name("compile_kernels.py")
    command = [sys.executable, str(program), str(capability), str(most), *wanted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert {arch for arch, *_ in made} == {capability} and {about for _, about, *_ in made} == {*wanted}
    assert {name for _, about, name, *_ in made if about == wanted[0]} == KERNELS
    assert all(size > 1000 for *_, size in made)
    # One row and several of five products, of which two are normed; the demo has some of the official's.
    products = [about for _, about, name, *_ in made if name == "rows_linear._kernel"]
    assert {products.count(about) for about in wanted if about != DEMO} == {10}
    assert [code for code in made if code[3] > most] == []

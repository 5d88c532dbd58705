"""A program: compiles what the torch backend launches on a kind of GPU, without one. For ``test_kernels_compile``.

    python compile_kernels.py CAPABILITY SHARED MODEL/TYPE/STAGE...

CAPABILITY as Triton writes it (89); SHARED: bytes of memory that the threads of a block may share; MODEL of MODELS, TYPE of TYPES,
STAGE: "llir", by when that memory is laid out, or "cubin", machine code, which takes longest. The networks run on the CPU, one
layer of each; Triton takes their kernels' arguments as on a GPU, tensors of which begin at multiples of 16 bytes here too, and
nothing is launched. A line of JSON for each code: capability, model, type and stage, kernel, bytes shared, length.

Not imported by tests: in a process that interprets kernels, Triton compiles none.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton._C.libtriton import ir, llvm
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from tortoise_rt.backends.cuda_decode import DrawingStep, Step, lay_out
from tortoise_rt.backends.cuda_diffusion import ChannelsLast
from tortoise_rt.backends.cuda_univnet import UnivNet
from tortoise_rt.export.bare import bare
from tortoise_rt.export.models.autoregressive import UnifiedVoice
from tortoise_rt.export.models.diffusion import DiffusionTts
from tortoise_rt.export.models.univnet import UnivNetGenerator
from tortoise_rt.kernels import decode_attention, draw_codes, launch, relative_attention, rows_linear
from tortoise_rt.kernels.ahead import NUMBERS
from tortoise_rt.spec import MELS, VOCODER_NOISE

OPTIMIZE = llvm.optimize_module
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROWS = (1, 2, 16, 17)  #: of a decoding step
FRAMES = (34, 48)  #: of a mel, a multiple of 16 or not


class Gpu:
    """As Triton's driver, of a GPU that is not there."""

    def __init__(self, capability: int, shared: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)
        self.utils = SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": shared})

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


class Compiler:
    """Stands in the place where Triton compiles what is about to be launched."""

    def __init__(self) -> None:
        self.stage, self.about = "", ""
        self._known: set[tuple[str, Any]] = set()

    def __call__(
        self, kernel: Any, key: Any, signature: Any, device: int, constants: Any, options: Any, attrs: Any, warmup: bool
    ) -> None:  # fmt: skip
        name = f"{kernel.__module__.split('.')[-1]}.{kernel.__name__}"
        if (name, key) in self._known:
            return
        self._known.add((name, key))
        *_, target, backend, _ = kernel.device_caches[device]
        source, context = kernel.ASTSource(kernel, signature, constants, attrs), ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
        code = source.make_ir(target, options, functions, modules, context)
        stages: dict[str, Any] = {}
        said: dict[str, Any] = {}
        backend.add_stages(stages, options, source.language)
        # What LLVM makes better is of interest for machine code alone, and takes a quarter of the time.
        llvm.optimize_module = OPTIMIZE if self.stage == "cubin" else lambda *given: None
        for stage, work in stages.items():
            code = work(code, said)
            if stage == self.stage:
                break
        print(json.dumps([target.arch, self.about, name, said["shared"], len(code)]))


def autoregressive(dtype: torch.dtype, dim: int, heads: int, codes: int) -> None:
    with bare():
        model = UnifiedVoice(
            dim=dim, layers=1, heads=heads, inner=4 * dim, voice_blocks=1, text_ids=256, text_positions=8, mel_codes=codes,
            mel_positions=8,
        )  # fmt: skip
    model = model.to_empty(device="cpu").to(dtype)
    lay_out(model)
    for rows in ROWS:
        like = torch.zeros(1, dtype=dtype)
        Step(model, rows, like).run()
        DrawingStep(model, rows, like, codes - 2, codes - 1).run()


def diffusion(dtype: torch.dtype, dim: int, heads: int) -> None:
    with bare():
        model = DiffusionTts(
            channels=dim, heads=heads, latent_dim=dim, codes=1, layers=1, final_blocks=1, integrator_layers=1,
            latent_blocks=1, code_blocks=0, voice_blocks=1,
        )  # fmt: skip
    network = ChannelsLast(model.to_empty(device="cpu").to(dtype))
    for frames in FRAMES:
        x, one = torch.zeros(1, MELS, frames), torch.zeros(1)
        for rows in (1, 2):
            condition = network.condition(torch.zeros(rows, frames, dim, dtype=dtype), one.expand(rows))
            network.step(x, x, condition, one, torch.zeros(NUMBERS), x)


def univnet(dtype: torch.dtype, channels: int, hidden: int) -> None:
    with bare():
        model = UnivNetGenerator(channels, hidden, [8, 8, 4], 1)
    network = UnivNet(model.to_empty(device="cpu").to(dtype))
    network(*(torch.zeros(1, size, 5, dtype=dtype) for size in (MELS, VOCODER_NOISE)))


MODELS = {
    "official": {autoregressive: (1024, 16, 8194), diffusion: (1024, 16), univnet: (32, 64)},
    "demo": {autoregressive: (256, 4, 1026), diffusion: (136, 2), univnet: (12, 16)},
}


@torch.no_grad()
def main() -> None:
    capability, shared, *wanted = sys.argv[1:]
    triton.runtime.driver.set_active(Gpu(int(capability), int(shared)))
    on_gpu: Any = SimpleNamespace(is_cuda=True, device=SimpleNamespace(index=0))
    for module in (decode_attention, draw_codes, rows_linear):
        module.early_start = lambda tensor: launch.early_start(on_gpu)
    for module in (relative_attention, rows_linear):
        module.roomy = lambda tensor: launch.roomy(on_gpu)
    compiler = Compiler()
    JITFunction._do_compile = lambda kernel, *given: compiler(kernel, *given)
    for compiler.about in wanted:
        model, dtype, compiler.stage = compiler.about.split("/")
        for network, sizes in MODELS[model].items():
            network(TYPES[dtype], *sizes)


if __name__ == "__main__":
    main()

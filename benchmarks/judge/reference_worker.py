"""Times the reference's own classes, in the reference's own environment. Started by ``reference.py``.

    PYTHON reference_worker.py --checkpoints DIR [--source SDIST]

Reads one job a line on standard input, ``{"what": "decode", ...}``, and answers each with one line of JSON. Nothing
of tortoise-rt is imported. Where torchaudio is missing (it has no build for every PyTorch), a stand-in lets the
reference be imported; it raises when it is used, which is only for clips of voices, never for what is timed here.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Answer = dict[str, Any]


def stand_in_for_torchaudio() -> None:
    try:
        import torchaudio  # noqa: F401
    except ImportError:

        def unavailable(*_: Any, **__: Any) -> Any:
            raise RuntimeError("torchaudio is not installed")

        module = types.ModuleType("torchaudio")
        module.__spec__ = ModuleSpec("torchaudio", None)
        module.transforms = types.SimpleNamespace(MelSpectrogram=unavailable)  # type: ignore[attr-defined]
        module.functional = types.SimpleNamespace(resample=unavailable)  # type: ignore[attr-defined]
        sys.modules["torchaudio"] = module


class Forced:
    """A logits processor by which row n has lengths[n] codes, the stop among them."""

    def __init__(self, lengths: list[int], prefix: int, stop: int) -> None:
        self.lengths, self.prefix, self.stop = lengths, prefix, stop

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        drawn = ids.shape[1] - self.prefix
        for row, length in enumerate(self.lengths):
            scores[row, 8192:] = -torch.inf  # the start code would end CLVP
            if drawn == length - 1:
                scores[row] = -torch.inf
                scores[row, self.stop] = 0
        return scores


def unguarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The reference moves models about; the time of that is its own. Gradients are off, as in its API."""

    def inner(*arguments: Any, **named: Any) -> Any:
        with torch.no_grad():
            return function(*arguments, **named)

    return inner


class Worker:
    """The reference's ``TextToSpeech`` and fast class on checkpoints of a folder, made when first needed."""

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints
        self._kept: dict[str, Any] = {}

    def _class(self, module: str) -> Any:
        found = importlib.import_module(f"tortoise.{module}")
        found.get_model_path = lambda name, *_: str(self.checkpoints / name)
        return found

    def _speech(self, batch: int = 16) -> Any:
        """The whole of it, as its users have it: key/value cache on, no redaction."""
        if "api" not in self._kept:
            made = self._class("api").TextToSpeech(
                autoregressive_batch_size=batch, enable_redaction=False, kv_cache=True
            )
            self._kept["api"] = made
        self._kept["api"].autoregressive_batch_size = batch
        return self._kept["api"]

    def _fast(self) -> Any:
        if "fast" not in self._kept:
            self._kept["fast"] = self._class("api_fast").TextToSpeech(enable_redaction=False, kv_cache=True)
        return self._kept["fast"]

    def _autoregressive(self) -> Any:
        """That network alone, built as the API builds it."""
        for key in ("api", "fast"):
            if key in self._kept:
                return self._kept[key].autoregressive
        if "autoregressive" not in self._kept:
            self._class("api")
            from tortoise.models.autoregressive import UnifiedVoice

            made = UnifiedVoice(
                max_mel_tokens=604, max_text_tokens=402, max_conditioning_inputs=2, layers=30, model_dim=1024,
                heads=16, number_text_tokens=255, start_text_token=255, checkpointing=False,
                train_solo_embeddings=False,
            ).eval()  # fmt: skip
            made.load_state_dict(torch.load(self.checkpoints / "autoregressive.pth"), strict=False)
            made.post_init_gpt2_config(use_deepspeed=False, kv_cache=True, half=False)
            self._kept["autoregressive"] = made
        return self._kept["autoregressive"]

    # --- jobs ---

    @unguarded
    def rows(self, lengths: list[int], batch: int, ids: list[int], seed: int = 0) -> Answer:
        """All samples in fixed batches, as ``tts`` draws them; ``lengths`` are forced."""
        network = self._autoregressive()
        torch.manual_seed(seed)
        text = torch.tensor([[*ids, 0]])
        voice = torch.zeros(1, 1024)
        passes: list[int] = []
        seconds = []
        for first in range(0, len(lengths), batch):
            part = lengths[first : first + batch]
            with forced(network, part, passes):
                began = time.perf_counter()
                codes = network.inference_speech(
                    voice, text, do_sample=True, top_p=0.8, temperature=0.8, num_return_sequences=len(part),
                    length_penalty=1.0, repetition_penalty=2.0, max_generate_length=500,
                )  # fmt: skip
                seconds.append(time.perf_counter() - began)
            found = [int((row == 8193).float().argmax()) + 1 for row in codes]
            if found != part:
                raise RuntimeError(f"lengths {found} instead of {part}")
        steps = [rows for rows in passes if rows > 0]
        return {"seconds": seconds, "row_steps": sum(steps), "steps": len(steps), "prompts": passes.count(0)}

    @unguarded
    def latents(self, ids: list[int], codes: int = 500) -> Answer:
        """The second pass over a winner, padded as the reference pads it."""
        network = self._autoregressive()
        text = torch.tensor([[*ids, 0]])
        row = torch.randint(0, 8192, (1, codes))

        def run() -> Any:
            return network(
                torch.zeros(1, 1024), text, torch.tensor([text.shape[-1]]), row,
                torch.tensor([codes * network.mel_length_compression]), return_latent=True, clip_inputs=False,
            )  # fmt: skip

        return {"seconds": timed(run, 4)[1:]}

    @unguarded
    def decode(self, rows: int, context: int, steps: int) -> Answer:
        """A code for each of ``rows``, ``steps`` times on end, behind ``context`` positions held in the cache."""
        model = self._autoregressive().inference_model
        model.store_mel_emb(torch.zeros(1, context - 1, 1024))
        prompt = model(torch.full((rows, context), 8192), attention_mask=torch.ones(rows, context))
        codes, past, seconds = torch.full((rows, 1), 9), prompt.past_key_values, []
        for step in range(steps):
            mask = torch.ones(rows, context + 1 + step)
            began = time.perf_counter()
            past = model(codes, past_key_values=past, attention_mask=mask).past_key_values
            seconds.append(time.perf_counter() - began)
        return {"seconds": seconds}

    @unguarded
    def prefill(self, rows: int, positions: int, repeats: int) -> Answer:
        """A prompt of ``positions``, the start code among them, which it repeats for each row."""
        model = self._autoregressive().inference_model
        model.store_mel_emb(torch.zeros(1, positions - 1, 1024))
        ids, mask = torch.full((rows, positions), 8192), torch.ones(rows, positions)
        return {"seconds": timed(lambda: model(ids, attention_mask=mask), repeats)}

    @unguarded
    def clvp(self, rows: int, codes: int, ids: list[int], repeats: int) -> Answer:
        network = self._speech().clvp
        text = torch.tensor([[*ids, 0]]).repeat(rows, 1)
        spoken = torch.randint(0, 8192, (rows, codes))
        return {"seconds": timed(lambda: network(text, spoken, return_loss=False), repeats)}

    @unguarded
    def diffusion_step(self, frames: int, guided: bool, repeats: int) -> Answer:
        """One step of its sampling loop, the condition computed before, as it does."""
        module = self._class("api")
        network = self._speech().diffusion
        diffuser = module.load_discrete_vocoder_diffuser(desired_diffusion_steps=80, cond_free=guided)
        aligned = {"precomputed_aligned_embeddings": torch.randn(1, 1024, frames)}
        x, step = torch.randn(1, 100, frames), torch.tensor([40])
        return {"seconds": timed(lambda: diffuser.p_sample(network, x, step, model_kwargs=aligned), repeats)}

    @unguarded
    def univnet(self, frames: int, repeats: int) -> Answer:
        network, mel = self._speech().vocoder, torch.randn(1, 100, frames)
        return {"seconds": timed(lambda: network.inference(mel), repeats)}

    @unguarded
    def hifigan(self, codes: int, repeats: int) -> Answer:
        network = self._fast().hifi_decoder
        latents, voice = torch.randn(1, codes, 1024), torch.randn(1, 1024)
        with without_cuda():
            return {"seconds": timed(lambda: network.inference(latents, voice), repeats)}

    @unguarded
    def tts(
        self, text: str, lengths: list[int], batch: int, voice: list[list[list[float]]], **settings: Any
    ) -> Answer:
        """A whole synthesis; ``lengths`` are forced, of batch after batch."""
        speech = self._speech(batch)
        queue = list(lengths)
        latents = tuple(torch.tensor(part) for part in voice)
        with forced(speech.autoregressive, queue, []):
            began = time.perf_counter()
            wav = speech.tts(
                text, conditioning_latents=latents, num_autoregressive_samples=len(lengths), verbose=False,
                use_deterministic_seed=1, **settings,
            )  # fmt: skip
        return {"seconds": time.perf_counter() - began, "audio_s": wav.shape[-1] / 24000}

    @unguarded
    def stream(self, text: str, length: int, voice: list[list[float]]) -> Answer:
        """``tts_stream`` of the fast class; -> when each chunk came, and its seconds of audio."""
        fast = self._fast()
        fast.get_random_conditioning_latents = lambda: torch.tensor(voice)
        came, audio = [], []
        with without_cuda(), forced(fast.autoregressive, [length], []):
            began = time.perf_counter()
            for chunk in fast.tts_stream(text, verbose=False, use_deterministic_seed=1):
                came.append(time.perf_counter() - began)
                audio.append(chunk.shape[-1] / 24000)
        return {"came": came, "audio_s": audio}


@contextmanager
def without_cuda() -> Iterator[None]:
    """Where there is none, tensors stay: HiFi-GAN of the reference sends its input to "cuda" by name."""
    move = Tensor.to

    def stay(self: Tensor, *arguments: Any, **named: Any) -> Tensor:
        return self if arguments == ("cuda",) else move(self, *arguments, **named)

    if not torch.cuda.is_available():
        Tensor.to = stay  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Tensor.to = move  # type: ignore[method-assign]


class forced:
    """While it lasts, ``network`` draws rows of given lengths, and ``passes`` gets the rows of each forward pass.

    ``lengths`` are taken as rows are asked for. A pass that reads the prompt is a 0.
    """

    def __init__(self, network: Any, lengths: list[int], passes: list[int]) -> None:
        self.network, self.lengths, self.passes = network, lengths, passes

    def __enter__(self) -> None:
        model = self.network.inference_model
        names = ("generate", "generate_stream", "forward")  # the second comes with the fast class
        self._kept = {name: getattr(model, name) for name in names if hasattr(model, name)}

        def generate(how: str, inputs: Tensor, **named: Any) -> Any:
            processors = named.pop("logits_processor", [])
            rows = named.get("num_return_sequences", 1)
            part, self.lengths = self.lengths[:rows], self.lengths[rows:]
            processors.append(Forced(part, inputs.shape[1], self.network.stop_mel_token))
            return self._kept[how](inputs, logits_processor=processors, **named)

        @functools.wraps(self._kept["forward"])  # its signature is looked at
        def forward(input_ids: Tensor, **named: Any) -> Any:
            self.passes.append(len(input_ids) if input_ids.shape[1] == 1 else 0)
            return self._kept["forward"](input_ids=input_ids, **named)

        model.generate = functools.partial(generate, "generate")
        if "generate_stream" in self._kept:
            model.generate_stream = functools.partial(generate, "generate_stream")
        model.forward = forward

    def __exit__(self, *_: object) -> None:
        for name, function in self._kept.items():
            setattr(self.network.inference_model, name, function)


def timed(run: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` runs. The caller asks again and drops the first answer."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds


def peak_mib() -> int:
    """The most memory that this process, not the one it was forked from, has held; Linux."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def jobs() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--source", type=Path, help="the unpacked sdist, where it is not installed")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the reference prints is no answer
    if arguments.source is not None:
        sys.path.insert(0, str(arguments.source))
    stand_in_for_torchaudio()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    worker = Worker(arguments.checkpoints)
    for job in jobs():
        try:
            answer = getattr(worker, job.pop("what"))(**job)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answer["peak_rss_mib"] = peak_mib()
        answer["torch"] = torch.__version__
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()

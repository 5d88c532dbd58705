"""The torch backend on an NVIDIA GPU; skipped, and said so, where there is none. All of it: benchmarks/gpu_suite.py"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from tortoise_rt.backends import open_engine  # noqa: E402
from tortoise_rt.backends.torch import TorchEngine  # noqa: E402
from tortoise_rt.config import make_settings  # noqa: E402
from tortoise_rt.engine import KVCache  # noqa: E402
from tortoise_rt.export.checkpoints import Checkpoints  # noqa: E402
from tortoise_rt.export.parity import BOUNDS, check_graphs, random_inputs, relative_error  # noqa: E402
from tortoise_rt.pipeline import Pipeline  # noqa: E402
from tortoise_rt.proxy_engine import ProxyEngine  # noqa: E402
from tortoise_rt.scheduler import Scheduler  # noqa: E402
from tortoise_rt.spec import GRAPHS  # noqa: E402

TINY = Path(__file__).parent / "data" / "tiny-a"
PRECISIONS = ("fp32", "fp16", "bf16")
#: of a mel after 25 steps, or a wav: rounding of one step is what the next begins with
LOOP_BOUNDS = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.1}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"),
]


@pytest.fixture(scope="module", params=PRECISIONS)
def engine(request: pytest.FixtureRequest) -> TorchEngine:
    return TorchEngine(TINY, "cuda", request.param)


def prompt(engine: TorchEngine, rows: int, lengths: list[int]) -> tuple[KVCache, np.ndarray]:
    """A cache of rows of different lengths, and the codes drawn at random that come next."""
    rng = np.random.default_rng(0)
    text = rng.integers(3, engine.dims["ar.text_ids"], (1, 9))
    voice = rng.standard_normal((1, engine.dims["ar.dim"])).astype(np.float32)
    cache = engine.new_cache(rows, 400)
    for row, length in enumerate(lengths):
        one = engine.new_cache(1, 400)
        codes = rng.integers(0, 200, (1, length))
        engine.ar_step(one, codes, np.arange(length)[None] % 100, voice, text)
        engine.put_rows(cache, [row], one, [0])
    return cache, rng.integers(0, 200, (rows, 1))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_graph_agrees_with_the_cpu(precision: str) -> None:
    engine = open_engine(TINY, device="cuda", precision=precision)
    for call in ("as it is", "recorded", "replayed"):
        parity = list(check_graphs(engine, Checkpoints(TINY)))
        assert len(parity) == 15
        assert [(p.graph, p.error) for p in parity if not p.ok] == [], call


def test_whole_runs_agree_with_the_cpu() -> None:
    settings = make_settings(num_autoregressive_samples=4, diffusion_iterations=5, max_mel_tokens=30)
    results = [
        Pipeline(open_engine(TINY, device=device)).synthesize([62, 84, 28], None, settings, seed=1)
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_array_equal(results[0].codes, results[1].codes)
    np.testing.assert_allclose(results[0].wavs[0], results[1].wavs[0], atol=5e-3)


DRAWN: dict[str, dict[str, object]] = {
    "usual": {},
    "every code": dict(top_k=0, top_p=1.0, temperature=2.0),
    "nucleus of all": dict(top_k=0, top_p=0.9),
    "typical": dict(typical_sampling=True, typical_mass=0.6),
    "greedy": dict(greedy=True),
    "shifted": dict(kv_positions="upstream"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_what_the_device_does_alone_is_what_it_does_with_the_host(engine: TorchEngine, name: str) -> None:
    """Codes equal, mels near: with the host in every step, and among other requests."""
    assert engine.draws_ahead > 1 and engine.denoises_ahead > 1
    settings = make_settings(
        num_autoregressive_samples=5,
        diffusion_iterations=25,
        max_mel_tokens=60,
        cond_free_share=0.7,
        **DRAWN[name],
    )
    one, other = (
        Pipeline(made).synthesize([62, 84, 28], None, settings, seed=3)
        for made in (engine, ProxyEngine(engine))
    )
    np.testing.assert_array_equal(one.codes, other.codes)
    assert relative_error(one.mels[0], other.mels[0]) < LOOP_BOUNDS[engine.info.precision["ar_step"]]
    with Scheduler(engine) as scheduler:
        handles = [scheduler.submit([62, 84, 28], one.voice, settings, seed) for seed in (3, 4)]
        np.testing.assert_array_equal(handles[0].result(120).codes, one.codes)
        handles[1].result(120)


def test_a_stream_is_the_clip(engine: TorchEngine) -> None:
    settings = make_settings(num_autoregressive_samples=1, decoder="hifigan", max_mel_tokens=60)
    wanted = Pipeline(engine).synthesize([62, 84, 28], None, settings, seed=3)
    with Scheduler(engine) as scheduler:
        streams = [scheduler.stream([62, 84, 28], wanted.voice, settings, 3) for _ in range(3)]
        for stream in streams:
            found = np.concatenate(list(stream))
            assert relative_error(found, wanted.wavs[0]) < LOOP_BOUNDS[engine.info.precision["ar_step"]]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("text", [1, 40, 90])
def test_a_row_is_read_as_the_module_reads_it(precision: str, text: int) -> None:
    """As it is, recorded and replayed, behind nothing and behind what was read before; and again once a code was decoded."""
    engine, cpu = TorchEngine(TINY, "cuda", precision), TorchEngine(TINY, "cpu")
    rng = np.random.default_rng(0)
    bound = BOUNDS[engine.info.precision["ar_step"]]
    for _ in range(4):
        ids, codes = rng.integers(3, 250, (1, text)), rng.integers(0, 200, (1, 70))
        voice = rng.standard_normal((1, engine.dims["ar.dim"])).astype(np.float32)
        found = []
        for made in (engine, cpu):
            cache, first = made.new_cache(1, 300), np.zeros((1, 1), np.int64)
            found.append(
                (
                    *made.ar_step(cache, first, first, voice, ids),
                    *made.ar_step(cache, codes, np.arange(70)[None]),
                )
            )
            found[-1] += made.ar_step(cache, codes[:, :1], np.array([[70]]))
        for got, wanted in zip(*found, strict=True):
            assert got.shape == wanted.shape and relative_error(got, wanted) < bound


def test_another_device_is_used() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device here")
    settings = make_settings(num_autoregressive_samples=4, diffusion_iterations=5, max_mel_tokens=30)
    results = [
        Pipeline(open_engine(TINY, device=device)).synthesize([62, 84, 28], None, settings, seed=1)
        for device in ("cuda:0", "cuda:1")
    ]
    np.testing.assert_array_equal(results[0].codes, results[1].codes)


def test_replayed_graphs_give_what_the_first_call_gave(engine: TorchEngine) -> None:
    rng = np.random.default_rng(0)
    sizes = {"rows": 2, "frames": 41, "codes": 9, "clips": 1, "text": 5, "samples": 4000}
    for graph in ("diffusion_condition", "diffusion_denoise", "univnet", "hifigan"):
        given = [random_inputs(GRAPHS[graph], engine.dims, sizes, rng) for _ in range(2)]
        first = [engine.run(graph, **inputs)[0] for inputs in given]
        again = [engine.run(graph, **inputs)[0] for inputs in given]
        for one, other in zip(first, again, strict=True):
            assert relative_error(other, one) < 1e-6 or engine.info.precision[graph] != "fp32"
            assert relative_error(other, one) < BOUNDS[engine.info.precision[graph]]


def test_rows_of_different_lengths_step_as_each_does_alone(engine: TorchEngine) -> None:
    lengths = [1, 300, 17, 256, 128]
    cache, codes = prompt(engine, len(lengths), lengths)
    positions = np.array(lengths)[:, None] % 100
    alone = [engine.take_rows(cache, [row]) for row in range(len(lengths))]
    together = engine.ar_step(cache, codes, positions)
    for row, one in enumerate(alone):
        single = engine.ar_step(one, codes[row : row + 1], positions[row : row + 1])
        for got, wanted in zip(together, single, strict=True):
            assert relative_error(got[row : row + 1], wanted) < BOUNDS[engine.info.precision["ar_step"]] / 2
    again = engine.take_rows(cache, [2, 3])
    few = engine.ar_step(again, codes[2:4], positions[2:4] + 1)
    many = engine.ar_step(cache, codes, positions + 1)
    np.testing.assert_array_equal(few[0], many[0][2:4])  # the same bits, from two rows on


def test_what_lies_behind_a_row_does_not_matter(engine: TorchEngine) -> None:
    cache, codes = prompt(engine, 3, [5, 40, 9])
    other = engine.take_rows(cache, range(3))
    with torch.inference_mode():
        for row, length in enumerate(cache.lengths):
            other.state[:, :, row, :, length:] = float("nan")
    positions = cache.lengths[:, None].copy()
    for got, wanted in zip(
        engine.ar_step(other, codes, positions), engine.ar_step(cache, codes, positions), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)


def test_threads_do_not_disturb_each_other(engine: TorchEngine) -> None:
    rng = np.random.default_rng(0)
    sizes = {"rows": 2, "frames": 33, "codes": 9}
    given = [random_inputs(GRAPHS["diffusion_denoise"], engine.dims, sizes, rng) for _ in range(8)]
    cache, codes = prompt(engine, 2, [7, 30])
    caches = [engine.take_rows(cache, [0, 1]) for _ in given]
    positions = np.array([[7], [30]])
    for inputs in given[:2]:  # so that all that is compared is replayed
        engine.run("diffusion_denoise", **inputs)
    wanted_step = engine.ar_step(engine.take_rows(cache, [0, 1]), codes, positions)
    wanted = [engine.run("diffusion_denoise", **inputs)[0] for inputs in given]
    got: list[tuple[np.ndarray, np.ndarray]] = [None] * len(given)  # type: ignore[list-item]

    def work(i: int) -> None:
        for _ in range(10):
            mel = engine.run("diffusion_denoise", **given[i])[0]
        got[i] = mel, engine.ar_step(caches[i], codes, positions)[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (mel, logits), wanted_mel in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(mel, wanted_mel)
        np.testing.assert_array_equal(logits, wanted_step[0])


def test_the_device_is_used(engine: TorchEngine) -> None:
    before = torch.cuda.memory_allocated()
    cache = engine.new_cache(4, 300)
    assert engine.info.device == "cuda:0"
    assert next(engine.module("autoregressive").parameters()).is_cuda
    assert torch.cuda.memory_allocated() - before >= 4 * 300 * engine.position_bytes()
    assert cache.state.is_cuda


def test_graphs_are_bounded() -> None:
    from tortoise_rt.backends.cuda_graphs import MOST_GRAPHS, Replays

    replays = Replays(torch.cuda.Stream())
    for size in range(1, MOST_GRAPHS + 10):
        for _ in range(2):
            assert (
                replays("double", lambda x: (2 * x,), [torch.ones(size, device="cuda")])[0].sum() == 2 * size
            )
    assert len(replays) == MOST_GRAPHS

"""The ONNX graphs against recordings of the reference, and what must hold of any batch, length or chunking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from tortoise_rt.backends.onnx import OnnxEngine
from tortoise_rt.engine import EngineInfo
from tortoise_rt.errors import BundleError, EngineError
from tortoise_rt.export.checkpoints import Checkpoints
from tortoise_rt.export.onnx import BUILDERS, write_graph
from tortoise_rt.spec import GRAPHS

DATA = Path(__file__).parent / "data" / "tiny-a"
BOUND = 1e-5  #: of an array's range; the recordings themselves reproduce to 7e-6


def assert_close(found: np.ndarray, wanted: np.ndarray, bound: float = BOUND) -> None:
    assert found.shape == wanted.shape
    error = np.abs(found - wanted).max() / np.ptp(wanted)
    assert error <= bound, f"error {error:.1e} of range"


def recording(name: str) -> dict[str, np.ndarray]:
    """Arrays of a recording; half floats stand for float32, int32 for int64."""
    widened = {"float16": np.float32, "int32": np.int64}
    with np.load(DATA / f"{name}.npz") as file:
        return {k: file[k].astype(widened.get(str(file[k].dtype), file[k].dtype)) for k in file.files}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> OnnxEngine:
    folder = tmp_path_factory.mktemp("graphs")
    checkpoints = Checkpoints(DATA)
    dims = checkpoints.dims()
    assert set(BUILDERS) == set(GRAPHS)
    for graph, spec in GRAPHS.items():
        weights = {k: v.numpy() for k, v in checkpoints.load(spec.network).state_dict().items()}
        write_graph(graph, weights, dims, checkpoints.section(spec.network), folder)
    return make_engine(folder, dims)


def make_engine(folder: Path, dims: dict[str, int]) -> OnnxEngine:
    files = {graph: f"{graph}.onnx" for graph in GRAPHS}
    info = EngineInfo("onnx", "cpu", str(folder), dims, frozenset(GRAPHS), None)
    return OnnxEngine(folder, info, files)


# --- recordings of the reference ---


def test_ar_voice(engine: OnnxEngine) -> None:
    r = recording("ar")
    (latent,) = engine.run("ar_voice", mel=r["cond_mel"][0])
    assert_close(latent.mean(0, keepdims=True), r["cond_latent"])
    assert_close(latent[:1], r["cond_latent_first"])


def text_row(engine: OnnxEngine, text: np.ndarray) -> np.ndarray:
    """Start id, ids, stop id."""
    return np.pad(
        np.pad(text, ((0, 0), (1, 0)), constant_values=engine.dims["ar.start_text"]), ((0, 0), (0, 1))
    )


def prefill(engine: OnnxEngine, rows: int, codes: np.ndarray, capacity: int = 64):
    """A cache that holds the recorded voice and text and ``codes`` in each row, and the step's results."""
    r = recording("ar")
    cache = engine.new_cache(rows, capacity)
    results = engine.ar_step(
        cache,
        np.broadcast_to(codes, (rows, codes.shape[-1])),
        np.broadcast_to(np.arange(codes.shape[-1]), (rows, codes.shape[-1])),
        np.repeat(r["cond_latent"], rows, 0),
        np.repeat(text_row(engine, r["text"]), rows, 0),
    )
    return cache, *results


def recorded_codes(engine: OnnxEngine) -> np.ndarray:
    """Rows of start, codes, stop: (2, 22)"""
    codes = np.pad(recording("ar")["codes"], ((0, 0), (1, 1)))
    codes[:, 0], codes[:, -1] = engine.dims["ar.start_code"], engine.dims["ar.stop_code"]
    return codes


def test_ar_step_whole_rows(engine: OnnxEngine) -> None:
    r = recording("ar")
    _, logits, latents = prefill(engine, 2, recorded_codes(engine))
    assert_close(latents[:, :20], r["latents"])
    assert_close(logits, r["full_logits"][:, -1])


@pytest.mark.parametrize("chunk", [1, 3, 21])
def test_ar_step_cached_is_whole(engine: OnnxEngine, chunk: int) -> None:
    """Codes appended in chunks, to two rows at once, give the latents and logits of the whole sequence."""
    r, codes = recording("ar"), recorded_codes(engine)
    cache, logits, first = prefill(engine, 2, codes[0, :1])
    assert_close(logits, r["full_logits"][:, 0])
    latents = [first]
    for start in range(1, codes.shape[1], chunk):
        part = codes[:, start : start + chunk]
        positions = np.broadcast_to(np.arange(start, start + part.shape[1]), part.shape)
        logits, latent = engine.ar_step(cache, part, positions)
        latents.append(latent)
        assert_close(logits, r["full_logits"][:, start + part.shape[1] - 1])
    assert_close(np.concatenate(latents, 1)[:, :20], r["latents"])


@pytest.mark.parametrize("name, rows, every, offset", [("b4_nocache", 4, 5, 1), ("b1_cached", 1, 1, 2)])
def test_ar_step_teacher_forced(engine: OnnxEngine, name: str, rows: int, every: int, offset: int) -> None:
    """Decoding code by code; the reference's own cache puts code i at position i + 2, which it must follow."""
    r = recording("ar")
    cache, logits, _ = prefill(engine, rows, np.array([engine.dims["ar.start_code"]]))
    for step in range(r["tf_hist"].shape[1] + 1):
        if step % every == 0:
            assert_close(logits, r[f"tf_{name}_logits"][step // every])
        if step < r["tf_hist"].shape[1]:
            codes = r["tf_hist"][:rows, step : step + 1]
            logits, _ = engine.ar_step(cache, codes, np.full((rows, 1), step + offset))


def test_ranking(engine: OnnxEngine) -> None:
    r = recording("rank")
    text, scale = engine.run("clvp_text", text_ids=r["text"][:1])
    (speech,) = engine.run("clvp_speech", codes=r["codes"])
    assert_close(text, r["clvp_text_latent"])
    assert_close(speech, r["clvp_speech_latent"])
    assert_close(scores(text, speech, scale), r["clvp_scores"])
    voices, scale = engine.run("cvvp_voice", mel=r["cvvp_mel"][0])
    (speech,) = engine.run("cvvp_speech", codes=r["codes"])
    for voice in (0, 1):
        assert_close(scores(voices[voice : voice + 1], speech, scale), r[f"cvvp_scores_{voice}"])


def scores(a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> np.ndarray:
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    return (a * b).sum(-1) * scale


def nearest(codes: int, frames: int) -> np.ndarray:
    return np.arange(frames) * codes // frames


def test_diffusion_conditioning(engine: OnnxEngine) -> None:
    r = recording("diffusion")
    (voice,) = engine.run("diffusion_voice", mel=r["cond_mel"][0])
    assert_close(voice.mean(0, keepdims=True), r["cond_latent"])
    aligned, _ = engine.run(
        "diffusion_align", latents=r["latents"], voice=r["cond_latent"], frame_index=nearest(11, 47)
    )
    assert_close(aligned.transpose(0, 2, 1), r["ti_emb"])
    (condition,) = engine.run("diffusion_condition", aligned=aligned, timestep=np.array([1000.0], np.float32))
    assert_close(condition.transpose(0, 2, 1)[..., ::3], r["t1000_code_emb"])


def denoise(engine: OnnxEngine, x: np.ndarray, aligned: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    """x: (rows, 100, frames); aligned: (rows, channels, frames) as recorded"""
    t = timesteps.astype(np.float32)
    (condition,) = engine.run("diffusion_condition", aligned=aligned.transpose(0, 2, 1), timestep=t)
    (out,) = engine.run("diffusion_denoise", x=x, condition=condition, timestep=t)
    return out


def test_diffusion_denoise(engine: OnnxEngine) -> None:
    r = recording("diffusion")
    x, aligned = (np.repeat(r[name], len(r["ts"]), 0) for name in ("x", "ti_emb"))
    assert_close(denoise(engine, x, aligned, r["ts"])[..., ::2], r["out_cond"])
    _, free = engine.run(
        "diffusion_align", latents=r["latents"], voice=r["cond_latent"], frame_index=nearest(11, 47)
    )
    without = np.broadcast_to(free[:, None], aligned.shape)
    assert_close(denoise(engine, x, without, r["ts"])[..., ::4], r["out_uncond"])
    short = np.repeat(r["ti_emb"][..., :7], 2, 0)
    assert_close(denoise(engine, r["x2"], short, np.array([10, 3000])), r["out_b2"])
    long = r["ti_emb"][..., nearest(47, 300)]
    assert_close(denoise(engine, r["x_long"], long, np.array([500]))[..., ::11], r["out_long"])


def test_vocoders(engine: OnnxEngine) -> None:
    r = recording("vocoder")
    (wav,) = engine.run("univnet", mel=r["mel"], noise=r["z"][..., :12])
    assert_close(wav[:, None, ::3], r["wav_nopad"])
    padded = np.pad(r["mel"], ((0, 0), (0, 0), (0, 10)), constant_values=np.float32(-11.5129))
    (wav,) = engine.run("univnet", mel=padded, noise=r["z"])
    assert_close(wav[:, None, : -10 * 256].clip(-1, 1), r["wav"])
    whole = np.array([0, r["hifi_up"].shape[2]])
    (wav,) = engine.run("hifigan", latents=r["hifi_up"], voice=r["hifi_g"], wanted=whole)
    assert_close(wav[:, None], r["hifi_wav"])


def test_small_networks(engine: OnnxEngine) -> None:
    r = recording("misc")
    for network in ("rlg_auto", "rlg_diffuser"):
        (latent,) = engine.run(network, noise=r[f"{network}_noise"])
        assert_close(latent, r[f"{network}_out"])
    (logits,) = engine.run(
        "detector", wav=(r["classifier_wav_i16"] / np.float32(32768)).astype(np.float32)[None]
    )
    assert_close(logits, r["classifier_logits"])


# --- properties ---


def random_inputs(
    engine: OnnxEngine, graph: str, rows: int, length: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Inputs of a graph by its spec; every free dimension but rows and clips is ``length``."""
    rng = np.random.default_rng(seed)
    inputs = {}
    for tensor in GRAPHS[graph].inputs:
        sizes = {"rows": rows, "clips": rows}
        shape = [d if isinstance(d, int) else engine.dims.get(d, sizes.get(d, length)) for d in tensor.dims]
        if tensor.name == "wanted":
            inputs[tensor.name] = np.array([length // 3, length])
        elif tensor.dtype == "int64":
            inputs[tensor.name] = rng.integers(0, length if tensor.name == "frame_index" else 250, shape)
        else:
            inputs[tensor.name] = rng.normal(size=shape).astype(np.float32)
    return inputs


#: reflection needs 4 frames; the detector halves repeatedly; wav2vec2 sees 25 ms
SHORTEST = {"univnet": 4, "detector": 64, "wav2vec2": 400}


@pytest.mark.parametrize("length", [1, 2, 31, 33, 200])
@pytest.mark.parametrize("graph", [name for name, spec in GRAPHS.items() if not spec.stateful])
def test_rows_are_independent(engine: OnnxEngine, graph: str, length: int) -> None:
    """Any length from one frame or code on; a row of a batch equals the row alone."""
    inputs = random_inputs(engine, graph, 3, max(length, SHORTEST.get(graph, 1)))
    together = engine.run(graph, **inputs)
    batched = {t.name for t in GRAPHS[graph].inputs if t.dims[0] in ("rows", "clips")}
    for row in range(3):
        alone = engine.run(graph, **{k: v[row : row + 1] if k in batched else v for k, v in inputs.items()})
        for a, b, tensor in zip(together, alone, GRAPHS[graph].outputs, strict=True):
            if tensor.dims[0] in ("rows", "clips"):
                assert_close(a[row : row + 1], b)


def test_ragged_rows(engine: OnnxEngine) -> None:
    """Rows of unequal lengths decode together as they would alone, for one code and for several."""
    rng = np.random.default_rng(1)
    caches, lengths = [], (1, 7, 20)
    for n in lengths:
        caches.append(prefill(engine, 1, rng.integers(0, 500, (1, n)))[0])
    merged = engine.new_cache(3, 64)
    for row, cache in enumerate(caches):
        merged.state[:, row] = cache.state[:, 0]
    merged.lengths = np.concatenate([c.lengths for c in caches])
    for new in (1, 4, 1):
        codes = rng.integers(0, 500, (3, new))
        positions = np.array(lengths)[:, None] + np.arange(new)
        logits, latents = engine.ar_step(merged, codes, positions)
        for row, cache in enumerate(caches):
            one = engine.ar_step(cache, codes[row : row + 1], positions[row : row + 1])
            assert_close(logits[row : row + 1], one[0])
            assert_close(latents[row : row + 1], one[1])
        lengths = tuple(n + new for n in lengths)


def test_take_rows_copies(engine: OnnxEngine) -> None:
    """Taken rows continue as the original does, also with other room, and leave it untouched."""
    cache, _, _ = prefill(engine, 1, np.array([[3, 4, 5]]))
    before = cache.state.copy()
    taken = engine.take_rows(cache, [0, 0], capacity=40)
    logits, _ = engine.ar_step(taken, np.array([[6], [7]]), np.full((2, 1), 3))
    assert np.array_equal(cache.state, before)
    wanted, _ = engine.ar_step(cache, np.array([[6]]), np.full((1, 1), 3))
    assert_close(logits[:1], wanted)


def test_garbage_behind_the_rows_is_ignored(engine: OnnxEngine) -> None:
    cache, _, _ = prefill(engine, 1, np.array([[3]]))
    dirty, _, _ = prefill(engine, 1, np.array([[3]]))
    dirty.state[:, :, :, int(dirty.lengths[0]) :] = np.nan
    for codes in (np.array([[6]]), np.array([[7, 8]])):
        positions = np.ones_like(codes)
        assert np.array_equal(
            engine.ar_step(dirty, codes, positions)[0], engine.ar_step(cache, codes, positions)[0]
        )


def test_odd_head_size(tmp_path: Path) -> None:
    """Heads of 20 are padded to what the attention operator takes; the result is that of torch."""
    import torch

    from tortoise_rt.export.models.autoregressive import UnifiedVoice

    rng = np.random.default_rng(2)
    shapes = {k: v.shape for k, v in Checkpoints(DATA).load("autoregressive").state_dict().items()}
    widths = {64: 40, 192: 120, 256: 160}
    weights = {}
    for key, shape in shapes.items():
        fixed = 1 if key in ("text_embedding.weight", "text_head.weight") else 0
        size = [n if fixed and axis == 0 else widths.get(n, n) for axis, n in enumerate(shape)]
        weights[key] = rng.normal(size=size, scale=0.1).astype(np.float32)
    weights["text_head.bias"] = np.zeros(256, np.float32)
    tensors = {k: torch.from_numpy(v) for k, v in weights.items()}
    module = UnifiedVoice.from_weights(tensors, {"heads": 2})
    module.load_state_dict(tensors)
    module.eval()
    dims = module.dims({"heads": 2})
    assert (dims["ar.dim"], dims["ar.heads"]) == (40, 2)
    write_graph("ar_step", weights, dims, {}, tmp_path)
    engine = make_engine(tmp_path, dims)
    cache, state = engine.new_cache(2, 12), module.new_cache(2, 12)
    nothing = {"voice": torch.zeros(2, 0, 40), "text_ids": torch.zeros((2, 0), dtype=torch.int64)}
    for past, new in ((0, 3), (3, 1)):
        codes = rng.integers(0, 500, (2, new))
        positions = past + np.arange(2 * new).reshape(2, new)
        found = engine.ar_step(cache, codes, positions)
        given = {**nothing, "codes": torch.from_numpy(codes), "code_positions": torch.from_numpy(positions)}
        with torch.no_grad():
            wanted = module.step(state, torch.full((2,), past), **given)
        for a, b in zip(found, wanted, strict=True):
            assert_close(a, b.numpy())


# --- faults ---


def test_large_tensors_are_external_and_aligned(engine: OnnxEngine) -> None:
    import onnx

    model = onnx.load(Path(engine.info.source, "diffusion_denoise.onnx"), load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.external_data:
            entry = {e.key: e.value for e in tensor.external_data}
            assert entry["location"] == "diffusion_denoise.data" and int(entry["offset"]) % 4096 == 0
        else:
            assert len(tensor.raw_data) <= 1024
    assert {p.key: p.value for p in model.metadata_props}["graph"] == "diffusion_denoise"


def test_small_graph_leaves_no_data_file(tmp_path: Path) -> None:
    weights = {
        f"layers.{i}.{n}": np.ones((4, 4) if n == "weight" else 4, np.float32)
        for i in (0, 1)
        for n in ("weight", "bias")
    }
    written = write_graph("rlg_auto", weights, {"rlg_auto.dim": 4}, {}, tmp_path)
    assert [p.name for p in written] == ["rlg_auto.onnx"] == [p.name for p in tmp_path.iterdir()]


def test_unknown_graph(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="Did you mean"):
        write_graph("ar_stepp", {}, {}, {}, tmp_path)


def test_wrong_model_file_is_named(engine: OnnxEngine, tmp_path: Path) -> None:
    for source, target in (("rlg_auto", "univnet"), ("rlg_auto", "rlg_auto")):
        for suffix in ("onnx", "data"):
            content = Path(engine.info.source, f"{source}.{suffix}").read_bytes()
            (tmp_path / f"{target}.{suffix}").write_bytes(
                content[: len(content) // 2] if source == target else content
            )
    broken = make_engine(tmp_path, dict(engine.dims))
    with pytest.raises(BundleError, match="univnet.onnx"):
        broken.session("univnet")
    with pytest.raises(BundleError, match="rlg_auto.onnx cannot be loaded"):
        broken.session("rlg_auto")


def test_failure_names_graph_and_shapes(engine: OnnxEngine) -> None:
    inputs = random_inputs(engine, "univnet", 1, 2)
    with pytest.raises(EngineError, match=r'graph "univnet" failed on mel \(1, 100, 2\)'):
        engine.run("univnet", **inputs)


def test_unknown_device(engine: OnnxEngine) -> None:
    for device in ("tpu", "cuda:x"):
        with pytest.raises(EngineError, match="has no device"):
            OnnxEngine(Path(), engine.info, {}, device)

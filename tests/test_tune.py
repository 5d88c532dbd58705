"""Which precision each graph gets, by measurement."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
from test_cli import ok

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from tortoise_rt import Pipeline, make_settings, open_engine
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.bench_graphs import precision_errors
from tortoise_rt.bundle import read_bundle
from tortoise_rt.engine import Array, Engine
from tortoise_rt.export import tune
from tortoise_rt.export.quantize import PRECISIONS, QUANTIZED
from tortoise_rt.proxy_engine import ProxyEngine

IDS = [[5, 9, 7, 3, 8], [4, 4, 6]]


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What ``export --precision auto`` makes, and what it says."""
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORTOISE_RT_CACHE", str(folder / "cache"))
        patch.setattr(tune, "LONG", {**tune.LONG, "frames": 234})  # of what is timed, not of what is judged
        result = ok("export", "--checkpoints", str(data), "--precision", "auto", "-o", str(folder / "bundle"))
    return folder / "bundle", result.output


def test_every_form_is_measured_and_the_fastest_near_one_is_taken(bundle: tuple[Path, str]) -> None:
    folder, said = bundle
    manifest = read_bundle(folder).manifest
    trials = [t for t in manifest["tuning"] if t["graph"] != "whole clips"]
    whole = [t for t in manifest["tuning"] if t["graph"] == "whole clips"]
    assert {(t["graph"], t["precision"]) for t in trials} == {(g, p) for g in QUANTIZED for p in PRECISIONS}
    given_up = {name.split(":")[0] for t in whole if not t["chosen"] for name in t["precision"].split("+")}
    for graph in QUANTIZED:
        (chosen,) = [t for t in trials if t["graph"] == graph and t["chosen"]]
        assert manifest["precision"][graph] == chosen["precision"]
        assert chosen["error"] <= chosen["bound"]
        if graph in given_up:
            assert chosen["precision"] == "fp32"
            continue
        able = [t for t in trials if t["graph"] == graph and t["error"] <= t["bound"]]
        quick = [t for t in able if t["milliseconds"] <= tune.GAIN * min(t["milliseconds"] for t in able)]
        assert chosen["error"] == min(t["error"] for t in quick)
    assert [t["error"] == 0 for t in trials] == [t["precision"] == "fp32" for t in trials]
    assert "chosen" in said and "too far off" in said
    # Clips are heard where anything but fp32 would be; which forms are fastest is the machine's to say.
    heard = ("ar_step", "diffusion_align", "diffusion_condition", "diffusion_denoise")
    reduced = any(manifest["precision"][graph] != "fp32" for graph in heard)
    assert bool(whole) == ("whole clips" in said) and (whole or not reduced)


def test_what_was_chosen_is_what_runs(bundle: tuple[Path, str]) -> None:
    folder, _ = bundle
    assert not [path for path in folder.iterdir() if path.is_dir()]
    engine = open_engine(folder)
    errors = {row["graph"]: row["error"] for row in precision_errors(engine)}
    assert errors.keys() == {graph for graph, form in engine.info.precision.items() if form != "fp32"}
    assert all(error > 0 for error in errors.values())
    result = Pipeline(engine).synthesize(
        IDS[0], None, make_settings(num_autoregressive_samples=2, max_mel_tokens=9, diffusion_iterations=3), 1
    )
    assert len(result.wavs[0]) > 0
    ok("verify", "--engine", str(folder))


def test_checkpoints_of_the_fast_path_alone(data: Path, tmp_path: Path) -> None:
    """Without networks to rank and to diffuse with, and without a tokenizer."""
    source = tmp_path / "checkpoints"
    source.mkdir()
    for name in ("autoregressive.pth", "hifidecoder.pth", "config.json"):
        (source / name).symlink_to(data / name)
    ok("export", "--checkpoints", str(source), "--precision", "auto", "-o", str(tmp_path / "bundle"))
    manifest = read_bundle(tmp_path / "bundle").manifest
    assert {trial["graph"] for trial in manifest["tuning"]} == {"ar_step"}
    assert manifest["precision"]["hifigan"] == "fp32" and manifest["defaults"]["decoder"] == "hifigan"


class Off(ProxyEngine):
    """A form of the engine that adds to what one graph gives."""

    def __init__(self, engine: Engine, graph: str, amount: float) -> None:
        super().__init__(engine)
        self._graph, self._amount = graph, amount

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        outputs = super()._run(graph, inputs)
        return tuple(o + self._amount * (graph == self._graph) for o in outputs)


def choose(
    monkeypatch: pytest.MonkeyPatch, graph: str, amount: float, seconds: float = 0.5
) -> tuple[str, list[tune.Trial]]:
    """The precision of a graph that gives ``amount`` too much in int8, which takes so many times as long as fp32."""
    monkeypatch.setattr(
        tune, "_by_turns", lambda runs: {name: 1.0 if name == "fp32" else seconds for name in runs}
    )
    judge = FakeEngine()
    engines = {"fp32": judge, "int8": Off(judge, graph, amount)}
    precisions, trials = tune.choose_precisions(engines, IDS, lambda *_: None)
    return precisions[graph], trials


def trial_of(trials: list[tune.Trial], graph: str) -> tune.Trial:
    (trial,) = [t for t in trials if (t.graph, t.precision) == (graph, "int8")]
    return trial


@pytest.mark.parametrize(("amount", "seconds", "precision"), [
    (0.0, 0.5, "int8"), (1e-4, 0.5, "int8"), (1e-4, 0.95, "fp32"), (1e-4, 2.0, "fp32"), (100.0, 0.5, "fp32"),
])  # fmt: skip
def test_the_fastest_near_form_is_taken(
    monkeypatch: pytest.MonkeyPatch, amount: float, seconds: float, precision: str
) -> None:
    """One that is hardly faster is not taken in place of a nearer one."""
    found, trials = choose(monkeypatch, "diffusion_condition", amount, seconds)
    assert found == precision
    trial = trial_of(trials, "diffusion_condition")
    assert trial.ok == (amount < 1) and trial.chosen == (precision == "int8")


def test_forms_are_given_up_until_the_clips_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each graph is within its own bound, but what the denoiser adds is too much for the mel."""
    monkeypatch.setattr(tune, "BOUNDS", {graph: (what, 1e9) for graph, (what, _) in tune.BOUNDS.items()})
    found, trials = choose(monkeypatch, "diffusion_denoise", 1.0)
    assert found == "fp32" and trial_of(trials, "diffusion_denoise").ok
    whole = [t for t in trials if t.graph == "whole clips"]
    assert [t.chosen for t in whole[-1:]] == [True] and not any(t.chosen for t in whole[:-1])
    assert "diffusion_denoise" in whole[0].precision and "diffusion_denoise" not in whole[-1].precision
    monkeypatch.setattr(tune, "MEL_BOUND", ("anything", 1e9))
    assert choose(monkeypatch, "diffusion_denoise", 1.0)[0] == "int8"


class Holding(FakeEngine):
    """Holds the weights of every graph that it has run."""

    def __init__(self) -> None:
        super().__init__()
        self.held: set[str] = set()
        self.most = 0

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        self.held.add(graph)
        self.most = max(self.most, len(self.held))
        return super()._run(graph, inputs)

    def release(self, graph: str) -> None:
        self.held.discard(graph)


def test_forms_do_not_stay_in_memory(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> None:
    engines = {"fp32": FakeEngine(), "int8": Holding()}
    monkeypatch.setattr(tune, "_by_turns", lambda runs: dict.fromkeys(runs, 1.0))
    tune.choose_precisions(engines, IDS, lambda *_: None)
    assert engines["int8"].most == 1
    ok("export", "--checkpoints", str(data), "-o", str(tmp_path / "bundle"), "--no-check")
    engine = open_engine(tmp_path / "bundle")
    noise = {"noise": np.zeros((1, engine.dims["rlg_auto.dim"]), np.float32)}
    (before,) = engine.run("rlg_auto", **noise)
    session = weakref.ref(engine.session("rlg_auto"))
    engine.release("rlg_auto")
    assert session() is None
    np.testing.assert_array_equal(engine.run("rlg_auto", **noise)[0], before)

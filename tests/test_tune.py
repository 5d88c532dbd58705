"""Which precision each graph gets, by measurement."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_cli import ok

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from tortoise_rt import Pipeline, make_settings, open_engine
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.bundle import read_bundle
from tortoise_rt.engine import Array, Engine, ProxyEngine
from tortoise_rt.export import tune
from tortoise_rt.export.quantize import PRECISIONS, QUANTIZED

IDS = [[5, 9, 7, 3, 8], [4, 4, 6]]


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What ``export --precision auto`` makes, and what it says."""
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORTOISE_RT_CACHE", str(folder / "cache"))
        result = ok("export", "--checkpoints", str(data), "--precision", "auto", "-o", str(folder / "bundle"))
    return folder / "bundle", result.output


def test_every_form_is_measured_and_the_fastest_near_one_is_taken(bundle: tuple[Path, str]) -> None:
    folder, said = bundle
    manifest = read_bundle(folder).manifest
    trials = [t for t in manifest["tuning"] if t["graph"] != "whole clip"]
    whole = [t for t in manifest["tuning"] if t["graph"] == "whole clip"]
    assert {(t["graph"], t["precision"]) for t in trials} == {(g, p) for g in QUANTIZED for p in PRECISIONS}
    given_up = {name.split(":")[0] for t in whole if not t["chosen"] for name in t["precision"].split("+")}
    for graph in QUANTIZED:
        (chosen,) = [t for t in trials if t["graph"] == graph and t["chosen"]]
        assert manifest["precision"][graph] == chosen["precision"]
        assert chosen["error"] <= chosen["bound"]
        able = [t["milliseconds"] for t in trials if t["graph"] == graph and t["error"] <= t["bound"]]
        assert chosen["milliseconds"] == min(able) or graph in given_up
    assert [t["error"] == 0 for t in trials] == [t["precision"] == "fp32" for t in trials]
    assert "chosen" in said and "too far off" in said and "whole clip" in said


def test_what_was_chosen_is_what_runs(bundle: tuple[Path, str]) -> None:
    folder, _ = bundle
    assert not [path for path in folder.iterdir() if path.is_dir()]
    engine = open_engine(folder)
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


def chosen_of(monkeypatch: pytest.MonkeyPatch, graph: str, amount: float) -> tuple[str, list[tune.Trial]]:
    """The precision of a graph that gives ``amount`` too much in int8, which is the fastest form of all."""
    monkeypatch.setattr(tune, "_median_seconds", lambda run: 1.0)
    judge = FakeEngine()
    engines = {"fp32": judge, "int8": Off(judge, graph, amount)}
    precisions, trials = tune.choose_precisions(engines, IDS, lambda *_: None)
    return precisions[graph], trials


def test_a_form_that_is_too_far_off_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found, trials = chosen_of(monkeypatch, "diffusion_condition", 100.0)
    assert found == "fp32"
    (trial,) = [t for t in trials if (t.graph, t.precision) == ("diffusion_condition", "int8")]
    assert trial.error > trial.bound and not trial.chosen

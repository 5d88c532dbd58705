"""A training's folder: what belongs together in it, what is refused, and how a run that stops goes on."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tortoise_rt.engines.demo.train import __main__ as command  # noqa: E402
from tortoise_rt.engines.demo.train import (  # noqa: E402
    autoregressive,
    clips,
    corpus,
    examples,
    hifigan,
    latents,
    loop,
    shards,
    teacher,
    vqvae,
)


def store(work: loop.Work, stage: str, model: dict[str, Any], **more: Any) -> None:
    loop.save({"modules": {"model": model}, "step": 5, "steps": 5, **more}, work.state(stage))


def run(*args: str | Path) -> Any:
    return CliRunner().invoke(command.main, [str(arg) for arg in args])


@pytest.fixture
def work(tmp_path: Path) -> loop.Work:
    """A folder with a VQ-VAE and two shards of one made-up row each."""
    torch.manual_seed(0)
    work = loop.Work(tmp_path)
    store(work, vqvae.STAGE, vqvae.VQVAE().state_dict())
    work.data.mkdir()
    for number in range(2):
        mel = torch.randn(80, 40).half()
        row = dict(
            text="a bee", phonemes="a bi", ids=torch.arange(6).short(), starts=torch.arange(7).int() * 1800,
            mel={"alto": mel}, wav={"alto": torch.arange(9).short()},
        )  # fmt: skip
        loop.save([row], work.data / f"shard_{number:03d}.pt")
    tokenizer = Path(loop.__file__).parent / "weights" / "tokenizer.json"
    shutil.copyfile(tokenizer, tmp_path / "tokenizer.json")
    return work


# --- the loop ---


def toy(work: loop.Work, steps: int, until: Callable[[int], float], source: str | None = None) -> None:
    """A stage whose losses are 1, one of them in the last 90 steps only."""
    model = nn.Linear(1, 1)

    def step(number: int, rng: np.random.Generator) -> dict[str, float]:
        work.until = until(number)
        return {"always": 1.0} | ({"late": 1.0} if number >= steps - 90 else {})

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loop.run(work, "toy", step, steps, {"model": model}, [optimizer], lambda step, steps: 1.0, source=source)


def test_reported_losses_are_means_of_the_steps_that_had_them(tmp_path: Path) -> None:
    work = loop.Work(tmp_path)
    with pytest.raises(loop.OutOfTime):
        toy(work, 240, lambda number: 0 if number == 149 else float("inf"))
    toy(work, 240, lambda number: float("inf"))
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 200, 240]
    assert [line["always"] for line in lines] == [1.0, 1.0, 1.0]
    assert [line.get("late") for line in lines] == [None, 1.0, 1.0]


def test_a_state_of_another_source_is_refused(tmp_path: Path) -> None:
    work = loop.Work(tmp_path)
    toy(work, 3, lambda number: float("inf"))
    assert work.finished("toy", "any")  # a state of an earlier version does not tell
    work.state("toy").unlink()
    toy(work, 3, lambda number: float("inf"), source="one")
    assert work.finished("toy") and work.finished("toy", "one")
    with pytest.raises(loop.Mismatch, match="toy.pt learned from the outputs of another network"):
        toy(work, 3, lambda number: float("inf"), source="two")


# --- what belongs together ---


def test_a_folder_belongs_to_a_scale_and_a_seed(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    for _ in range(2):
        loop.Work(folder, scale=0.01).begin()
    result = run("tokens", "--work", folder)
    assert result.exit_code == 1
    assert "was begun with scale 0.01 and seed 0, not with scale 1.0 and seed 0" in result.output
    with pytest.raises(loop.Mismatch, match="not with scale 0.01 and seed 3"):
        loop.Work(folder, scale=0.01, seed=3).begin()


def test_codes_of_another_vqvae_are_noticed(work: loop.Work) -> None:
    vqvae.encode_corpus(work)
    first = vqvae.read_codes(work)
    assert list(first) == ["shard_000.pt", "shard_001.pt"] and len(first["shard_000.pt"][0]) == 12
    assert len(examples.prepare(work)) == 2
    store(work, vqvae.STAGE, vqvae.VQVAE().state_dict())
    with pytest.raises(loop.Mismatch, match="codes.pt is of another codebook .*: run the stage encode"):
        examples.prepare(work)
    vqvae.encode_corpus(work)
    second = vqvae.read_codes(work)
    assert not torch.equal(first["shard_000.pt"][0], second["shard_000.pt"][0])
    for name, example in zip(second, examples.prepare(work), strict=True):
        np.testing.assert_array_equal(example.codes, second[name][0].numpy())


def test_codes_of_an_earlier_version_are_read_and_made_anew(work: loop.Work) -> None:
    old = {"shard_000.pt": [torch.tensor([1], dtype=torch.int16)]}
    torch.save(old, work.folder / "codes.pt")
    assert vqvae.read_codes(work)["shard_000.pt"][0].tolist() == [1]
    vqvae.encode_corpus(work)
    assert len(vqvae.read_codes(work)) == 2 and len(vqvae.read_codes(work)["shard_000.pt"][0]) == 12


def test_examples_of_an_earlier_version_are_made_anew(work: loop.Work) -> None:
    vqvae.encode_corpus(work)
    examples.prepare(work)
    path = work.folder / "examples.npz"
    with np.load(path) as stored:
        old = {name: stored[name][:0] for name in stored.files if name != "codebook"}
    np.savez(path, **old)
    assert len(examples.prepare(work)) == 2


def test_latents_of_another_network_are_refused(tmp_path: Path) -> None:
    work, path = loop.Work(tmp_path), tmp_path / "latents.pt"
    store(work, autoregressive.STAGE, {"b": torch.ones(3), "a": torch.zeros(2)})
    made = latents.network(work)
    loop.save({"trained": -1}, path)  # of an earlier version
    assert latents.read(work) == {"trained": -1}
    loop.save({"network": made}, path)
    assert latents.read(work) == {"network": made}
    latents.make(work)  # nothing to do
    store(work, hifigan.STAGE, {}, source=made)
    hifigan.train(work)  # finished
    store(work, autoregressive.STAGE, {"b": torch.ones(3), "a": torch.ones(2)})
    with pytest.raises(loop.Mismatch, match="latents.pt is of another .*: run the stage latents"):
        latents.read(work)
    with pytest.raises(loop.Mismatch, match="hifigan.pt learned from the outputs .*: remove it"):
        hifigan.train(work)


def test_shards_are_read_without_running_their_pickles(work: loop.Work) -> None:
    path = work.data / "shard_000.pt"
    (new,) = shards.read(path)
    arrays = dict(ids=new["ids"], starts=new["starts"], wav=new["wav"])
    assert isinstance(new["wav"]["alto"], np.ndarray) and new["ids"].dtype == np.int16
    torch.save([{**new, **arrays}], path)  # as earlier versions wrote them
    (old,) = shards.read(path)
    for name in ("ids", "starts"):
        np.testing.assert_array_equal(old[name], new[name])
        assert old[name].dtype == new[name].dtype
    np.testing.assert_array_equal(old["wav"]["alto"], new["wav"]["alto"])
    assert shards.phonemes_at(old, np.array([0.0, 1e6])).tolist() == [0, 5]
    torch.save([{**new, "seconds": Path("anything else")}], path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        shards.read(path)


# --- stopping ---


def test_encoding_goes_on_where_it_stopped(work: loop.Work, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0])
    work.until = 1.0
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(clock))
        with pytest.raises(loop.OutOfTime, match="encode, before shard_001.pt"):
            vqvae.encode_corpus(work)
    assert list(vqvae.read_codes(work)) == ["shard_000.pt"]
    work.until = float("inf")
    vqvae.encode_corpus(work)
    assert list(vqvae.read_codes(work)) == ["shard_000.pt", "shard_001.pt"]


def test_the_teacher_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = loop.Work(tmp_path)
    corpus.write([("kind", text) for text in "abcd"], tmp_path / "corpus.txt.gz")
    monkeypatch.setattr(teacher, "SHARD", 1)
    monkeypatch.setattr(teacher, "Teacher", object)

    def row(_: object, text: str, voices: tuple[str, ...]) -> dict[str, Any]:
        work.until = 0 if text == "a" else float("inf")
        return {"text": text, "seconds": 1.0}

    monkeypatch.setattr(teacher, "_row", row)
    with pytest.raises(loop.OutOfTime, match="speak, before shard_002.pt"):
        teacher.speak_corpus(work, first=0, step=2)
    assert [path.name for path in shards.paths(work.data)] == ["shard_000.pt"]
    work.until = float("inf")
    teacher.speak_corpus(work)
    assert len(shards.paths(work.data)) == 4


def test_a_stopped_run_says_so_in_its_exit_status(work: loop.Work) -> None:
    result = run("encode", "--work", work.folder, "--minutes", "1e-9")
    assert result.exit_code == command.STOPPED and "before encode: stopped; run again" in result.output
    assert f"{command.STOPPED} stopped by --minutes" in run("--help").output
    assert run("encode", "--work", work.folder).exit_code == 0


# --- results ---


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where committed weights and voices would be."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.setattr(loop, "KEPT", folder / "weights")
    monkeypatch.setattr(command, "VOICES_FOLDER", folder / "voices")
    monkeypatch.setattr(clips, "write", lambda folder: folder.mkdir())
    return folder


def test_results_stay_in_the_work_folder(work: loop.Work, checkout: Path) -> None:
    store(work, autoregressive.STAGE, {"a": torch.ones(2)})
    store(work, hifigan.STAGE, {"a": torch.ones(2)}, steps=9)
    result = run("clips", "keep", "--work", work.folder)
    assert result.exit_code == 0 and "hifigan.safetensors (unfinished)" in result.output
    kept = {path.name for path in (work.folder / "kept").iterdir()}
    assert kept == {f"{s}.safetensors" for s in ("vqvae", "autoregressive", "hifigan")} | {"tokenizer.json"}
    assert (work.folder / "voices").is_dir() and not list(checkout.iterdir())


def test_only_a_whole_training_is_installed(work: loop.Work, checkout: Path) -> None:
    trial = run("keep", "--work", work.folder / "trial", "--scale", "0.01", "--install")
    assert trial.exit_code == 2 and "--scale is 0.01, not 1" in trial.output
    install = ("clips", "keep", "--work", work.folder, "--install")
    unfinished = run(*install)
    assert unfinished.exit_code == 1 and "unfinished: autoregressive, hifigan, clvp" in unfinished.output
    store(work, autoregressive.STAGE, {"a": torch.ones(2)}, steps=9)
    assert "unfinished: autoregressive\n" in run(*install, "--from-kept").output
    assert not list(checkout.iterdir())
    store(work, autoregressive.STAGE, {"a": torch.ones(2)})
    assert run(*install, "--from-kept").exit_code == 0
    found = {str(path.relative_to(checkout)) for path in checkout.rglob("*")}
    assert {"voices", "weights/vqvae.safetensors", "weights/tokenizer.json"} <= found


def test_committed_weights_are_taken_on_request_and_named(
    work: loop.Work, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(work, autoregressive.STAGE, {"a": torch.full((2,), 0.5)})
    work.keep(autoregressive.STAGE, loop.KEPT)
    made = latents.network(work)
    work.state(autoregressive.STAGE).unlink()
    with pytest.raises(FileNotFoundError, match="run the stage autoregressive first, or .*--from-kept"):
        work.weights(autoregressive.STAGE)
    kept = loop.Work(work.folder, from_kept=True)
    for _ in range(2):
        assert kept.weights(autoregressive.STAGE)["a"].tolist() == [0.5, 0.5]
    assert latents.network(kept) == made
    assert capsys.readouterr().out.count("autoregressive: the committed weights") == 1
    with pytest.raises(FileNotFoundError, match="run the stage clvp first$"):
        kept.weights("clvp")

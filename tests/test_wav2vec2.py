"""The wav2vec2 aligner against a recording of transformers' network, and its files in Hugging Face's layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conftest import export  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from tortoise_rt import open_engine  # noqa: E402
from tortoise_rt.alignment import hear  # noqa: E402
from tortoise_rt.errors import CheckpointError  # noqa: E402
from tortoise_rt.export.checkpoints import Checkpoints  # noqa: E402
from tortoise_rt.resample import resample  # noqa: E402
from tortoise_rt.spec import SYMBOLS  # noqa: E402


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A folder of checkpoints with wav2vec2 alone."""
    shutil.copytree(data / "wav2vec2", tmp_path / "wav2vec2")
    return tmp_path


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def recorded(data: Path) -> dict[str, np.ndarray]:
    with np.load(data / "wav2vec2.npz") as file:
        return {name: file[name].astype(np.float32) for name in file.files}


def test_the_module_computes_what_transformers_does(data: Path) -> None:
    arrays, module = recorded(data), Checkpoints(data).load("wav2vec2")
    with torch.inference_mode():
        logits = module.logits(torch.from_numpy(arrays["normalised"])).numpy()
        folded = module(torch.from_numpy(arrays["normalised"])).exp().numpy()
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-5)
    vocabulary = json.loads((data / "wav2vec2" / "vocab.json").read_text())
    exact = np.exp(arrays["logits"].astype(np.float64))
    exact /= exact.sum(-1, keepdims=True)
    for place, symbol in enumerate(SYMBOLS[1:], 1):
        own = vocabulary["|" if symbol == " " else symbol.upper()]
        np.testing.assert_allclose(folded[..., place], exact[..., own], atol=1e-6)
    np.testing.assert_allclose(folded.sum(-1), 1, atol=1e-5)


def test_clips_are_prepared_as_its_processor_does(
    random_bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, engine = recorded(data), open_engine(random_bundle)
    monkeypatch.setattr("tortoise_rt.alignment.resample", lambda wav, source, target: wav)
    given: list[np.ndarray] = []
    run = engine.run
    monkeypatch.setattr(
        engine, "run", lambda graph, **inputs: given.append(inputs["wav"]) or run(graph, **inputs)
    )
    heard = hear(engine, arrays["wav"][0])
    np.testing.assert_allclose(given[0], arrays["normalised"], atol=1e-5)
    assert heard.step == 0.02 and heard.scores.shape == (12, len(SYMBOLS))
    assert resample(arrays["wav"][0], 24000, 16000).shape == (2667,)


def test_safetensors_are_the_same_weights(copy: Path) -> None:
    before = Checkpoints(copy).load("wav2vec2").state_dict()
    file = copy / "wav2vec2" / "pytorch_model.bin"
    weights = torch.load(file, weights_only=True)
    positions = "wav2vec2.encoder.pos_conv_embed.conv."
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):  # as older versions write it
        weights[positions + old] = weights.pop(f"{positions}parametrizations.weight.{new}")
    save_file(weights, copy / "wav2vec2" / "model.safetensors")
    file.unlink()
    after = Checkpoints(copy).load("wav2vec2").state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_letters_of_both_cases_add_up_and_the_blank_is_the_configs(copy: Path) -> None:
    letters = "_-!'(),.:;? " + "".join(chr(c) for c in range(97, 118))  # as the original's vocabulary begins
    change(
        copy / "wav2vec2" / "vocab.json",
        lambda v: (v.clear(), v.update({c: i for i, c in enumerate(letters)})),
    )
    with pytest.raises(CheckpointError, match="lacks 'v', 'w', 'x', 'y', 'z'"):
        Checkpoints(copy).load("wav2vec2")
    change(
        copy / "wav2vec2" / "vocab.json",
        lambda v: (v.clear(), v.update({c: i for i, c in enumerate("_| aAbcdefghijklmnopqrstuvwxyz")})),
    )
    folding = Checkpoints(copy).load("wav2vec2").folding
    assert folding[:5].argmax(1).tolist() == [0, 28, 28, 2, 2] and torch.equal(folding.sum(1), torch.ones(33))
    change(copy / "wav2vec2" / "config.json", lambda c: c.update(pad_token_id=1))
    assert Checkpoints(copy).load("wav2vec2").folding[1].argmax() == 0


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (
            "config.json",
            {"do_stable_layer_norm": False},
            "do_stable_layer_norm False; only wav2vec2 networks with True",
        ),
        ("config.json", {"feat_extract_norm": "group"}, "only wav2vec2 networks with 'layer'"),
        ("config.json", {"num_attention_heads": 0}, "unusable numbers"),
        ("config.json", {"num_attention_heads": 5}, "5 heads cannot share 16 channels"),
        ("config.json", {"conv_stride": "many"}, "unusable numbers"),
        ("vocab.json", {"A": 33}, "the network has 33 symbols"),
        ("vocab.json", {"A": "one"}, "numbers 'A' as 'one'"),
    ],
)
def test_what_cannot_be_used_is_said(copy: Path, file: str, edit: dict[str, Any], message: str) -> None:
    change(copy / "wav2vec2" / file, lambda content: content.update(edit))
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(copy).load("wav2vec2")


def test_missing_and_damaged_files_are_said(copy: Path) -> None:
    folder = copy / "wav2vec2"
    (folder / "vocab.json").rename(folder / "elsewhere")
    with pytest.raises(CheckpointError, match="vocab.json is missing: tortoise-rt fetch --aligner"):
        Checkpoints(copy).load("wav2vec2")
    (folder / "elsewhere").rename(folder / "vocab.json")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json is not valid JSON"):
        Checkpoints(copy).load("wav2vec2")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        Checkpoints(copy).load("wav2vec2")
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        Checkpoints(copy).load("wav2vec2")


def test_a_bundle_has_it_beside_the_rest(data: Path, tmp_path: Path) -> None:
    engine = open_engine(export(data, tmp_path / "bundle", "autoregressive", "hifigan", "wav2vec2"))
    assert engine.has("wav2vec2") and engine.dims["wav2vec2.stride"] == 320
    torch_engine = open_engine(data, "torch", "cpu")
    wav = np.random.default_rng(0).normal(size=30000).astype(np.float32)
    np.testing.assert_allclose(hear(engine, wav).scores, hear(torch_engine, wav).scores, atol=1e-3)

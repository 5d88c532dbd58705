"""Training of the aligner, on sentences that are made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from training import assert_same_states, trained_twice  # noqa: E402

from tortoise_rt.engines.demo.train import aligner, loop  # noqa: E402
from tortoise_rt.export.models.aligner import Aligner  # noqa: E402
from tortoise_rt.spec import ALIGNER_STRIDE, SYMBOLS  # noqa: E402


def said(rng: np.random.Generator, words: int = 2) -> aligner.Spoken:
    """Letters as bands of their own, 12 frames each, with 8 frames of silence around words."""
    spelt = [[2 + int(i) for i in rng.permutation(26)[:3]] for _ in range(words)]
    mel = [torch.full((80, 8), aligner.SILENCE)]
    times, frame = [], 8
    for word in spelt:
        for symbol in word:
            part = torch.full((80, 12), aligner.SILENCE)
            part[3 * (symbol - 2) : 3 * symbol - 4] = 0.0
            mel.append(part)
        times.append((frame, frame + 36))
        mel.append(torch.full((80, 8), aligner.SILENCE))
        frame += 44
    return aligner.Spoken(
        torch.cat(mel, 1), aligner.sentence_of(spelt), np.array(times) * aligner.HOP / aligner.CODE_RATE
    )


def test_texts_as_symbols() -> None:
    words = aligner.symbols_of("It's the 2-edged Sword.")
    assert ["".join(SYMBOLS[i] for i in word) for word in words] == ["it's", "the", "twoedged", "sword"]
    assert "".join(SYMBOLS[i] for i in aligner.sentence_of(words)) == " it's the twoedged sword "


def test_word_times_of_the_teacher() -> None:
    starts = np.array([0, 240, 480, 720, 960, 1200, 1200, 1440])
    times = aligner.times_of("ab c.", starts) * aligner.SAMPLE_RATE
    np.testing.assert_allclose(times, [[240, 720], [960, 1200]])


def test_what_may_be_heard_holds_the_truth() -> None:
    spoken = said(np.random.default_rng(0), words=3)
    outputs = -(-spoken.mel.shape[1] // ALIGNER_STRIDE)
    may = aligner.allowed(spoken, outputs)
    assert may[0].nonzero()[0].tolist() == [aligner.SPACE]
    assert spoken.words is not None
    middle = (spoken.words.mean(1) / aligner.OUTPUT_SECONDS).astype(int)
    for number, output in enumerate(middle):
        letters = spoken.symbols[1 + 4 * number : 4 + 4 * number]
        assert set(may[output].nonzero()[0]) == {0, *letters}
    assert aligner.allowed(replace(spoken, words=None), outputs).all()


def test_pace_moves_the_words_along() -> None:
    spoken, rng = said(np.random.default_rng(1)), np.random.default_rng(2)
    assert spoken.words is not None
    for _ in range(5):
        made = aligner.paced(spoken, rng)
        assert made.words is not None
        loud = (made.mel.max(0).values > -6).nonzero()[:, 0].numpy() * aligner.HOP / aligner.CODE_RATE
        np.testing.assert_allclose([loud[0], loud[-1]], [made.words[0, 0], made.words[-1, 1]], atol=0.03)
        assert made.mel.shape[1] != spoken.mel.shape[1]


def test_disguise_keeps_the_shape_and_the_floor() -> None:
    mel, rng = said(np.random.default_rng(3)).mel, np.random.default_rng(4)
    before = mel.clone()
    for _ in range(20):
        made = aligner.disguised(mel, rng)
        assert made.shape == mel.shape and made.min() >= aligner.SILENCE and made.isfinite().all()
        assert not torch.equal(made, mel)
    torch.testing.assert_close(mel, before)


def heard_as(outputs: list[int]) -> np.ndarray:
    """Log probabilities of outputs that are nearly certain."""
    return np.log(np.eye(len(SYMBOLS))[outputs] * 0.9 + 0.001)


def test_alignment_finds_every_symbol() -> None:
    space, a, b = aligner.SPACE, 2, 3
    heard = heard_as([space, space, a, 0, a, a, 0, space, b, space, space])
    symbols = np.array([space, a, a, space, b, space])
    assert aligner.align(heard, symbols).tolist() == [[0, 1], [2, 2], [4, 5], [7, 7], [8, 8], [9, 10]]
    times = aligner.word_times(heard, symbols) / aligner.OUTPUT_SECONDS
    np.testing.assert_allclose(times, [[1.5, 6.5], [7.5, 8.5]])
    assert aligner.spell(heard) == "aa b"


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [("kitten", "sitting", 3), ("", "ab", 2), ("ab", "", 2), ("abc", "abc", 0), ("abcd", "acd", 1)],
)
def test_edit_distance(a: str, b: str, edits: int) -> None:
    assert aligner.distance(a, b) == edits


def test_the_aligner_is_read_from_its_weights() -> None:
    model = aligner.build().eval()
    again = Aligner.from_weights(model.state_dict(), {})
    again.load_state_dict(model.state_dict())
    mel = torch.randn(2, 80, 41)
    torch.testing.assert_close(again.eval()(mel), model(mel))
    assert model(mel).shape == (2, 21, len(SYMBOLS))
    assert sum(p.numel() for p in model.parameters()) <= 400_000


@pytest.fixture
def aligner_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], loop.Work]:
    rng = np.random.default_rng(8)
    sentences = {
        voice: [replace(said(rng, int(rng.integers(1, 3))), place=(1, i)) for i in range(24)]
        for voice in ("alto", "tenor")
    }
    decoded = {
        voice: [replace(row, place=(0, i)) for i, row in enumerate(rows[:8])]
        for voice, rows in sentences.items()
    }
    monkeypatch.setattr(aligner, "read", lambda work, limit: sentences)
    monkeypatch.setattr(aligner, "decoded", lambda work, spoken: decoded)
    monkeypatch.setattr(aligner, "HELD_OUT_EVERY", 4)
    monkeypatch.setattr(aligner, "HELD_OUT", 4)

    def make(name: str) -> loop.Work:
        folder = tmp_path / name
        folder.mkdir()
        return loop.Work(folder)

    return make


def test_the_aligner_learns(aligner_work: Callable[[str], loop.Work]) -> None:
    work = aligner_work("learning")
    rng = np.random.default_rng(9)
    batch = aligner.collate([said(rng) for _ in range(8)])

    def loss(model: Aligner) -> float:
        with torch.no_grad():
            return float(sum(aligner.losses(model, batch).values()))

    before = loss(aligner.build())
    aligner.train(work, steps=30, frames=800)
    assert loss(aligner.load(work)) < before - 1


def test_the_aligner_goes_on_where_it_stopped(aligner_work: Callable[[str], loop.Work]) -> None:
    whole, parts = trained_twice(
        aligner_work, aligner.STAGE, lambda work: aligner.train(work, steps=3, frames=300)
    )
    assert_same_states(whole, parts)


def test_sentences_are_read_from_shards(tmp_path: Path) -> None:
    row = dict(
        text="A bee.", phonemes="a bi.", ids=torch.arange(7), starts=torch.tensor([0, 600, 1200, 1800, 2400, 3000, 3000, 3600]),
        mel={"alto": torch.zeros(80, 12).half(), "tenor": torch.zeros(80, 12).half()},
    )  # fmt: skip
    (tmp_path / "data").mkdir()
    torch.save(
        [row, {**row, "phonemes": "abi.", "starts": row["starts"][:-1]}], tmp_path / "data" / "shard_000.pt"
    )
    found = aligner.read(loop.Work(tmp_path))
    assert [len(found[voice]) for voice in ("alto", "tenor")] == [2, 2]
    first, second = found["alto"]
    assert first.words is not None and first.words.shape == (2, 2) and second.words is None
    assert [row.place for row in found["tenor"]] == [(0, 0), (0, 1)]
    assert "".join(SYMBOLS[i] for i in first.symbols) == " a bee "

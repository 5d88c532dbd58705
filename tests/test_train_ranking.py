"""Training of CLVP and of the aligner, on sentences that are made up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tortoise_rt import ranking  # noqa: E402
from tortoise_rt.engines.demo.train import aligner, clvp, examples, loop, vqvae  # noqa: E402
from tortoise_rt.engines.demo.train.examples import Example  # noqa: E402
from tortoise_rt.export.checkpoints import load_network  # noqa: E402
from tortoise_rt.export.models.aligner import SYMBOLS, Aligner  # noqa: E402
from tortoise_rt.export.models.graphs import GRAPH_FUNCTIONS  # noqa: E402
from tortoise_rt.spec import CALM_TOKEN, CHECKPOINT_FILES  # noqa: E402

PER_ID = 3  #: codes of each text id, of the made-up sentences
RANK_MISTAKES = sorted(clvp.MISTAKES)


def sentence(rng: np.random.Generator, words: int = 4) -> Example:
    """Words of two or three ids; every id is spoken as codes of its own, with silence before and behind."""
    text: list[int] = []
    for word in range(words):
        letters = clvp.FIRST_LETTER + rng.integers(60, size=rng.integers(2, 4))
        text += [examples.SPACE] * (word > 0) + letters.tolist()
    ids = np.array(text)
    codes = (100 + ids[:, None] * PER_ID + np.arange(PER_ID)).ravel()
    reading = np.repeat(np.arange(len(ids)), PER_ID) + np.tile((np.arange(PER_ID) + 0.5) / PER_ID, len(ids))
    phonemes = np.repeat(ids, 2 * PER_ID).reshape(-1, 2)
    calm = np.full(2, CALM_TOKEN)
    return Example(
        ids,
        np.concatenate([calm[:1], codes, calm]),
        np.concatenate([[0], reading, [len(ids) - 0.01] * 2]).astype(np.float32),
        np.concatenate([[[0, 0]], phonemes, [[0, 0]] * 2]),
        0,
        0,
    )


@pytest.fixture
def spoken() -> list[Example]:
    rng = np.random.default_rng(0)
    return sorted((sentence(rng, int(rng.integers(2, 5))) for _ in range(24)), key=len)


@pytest.fixture
def model() -> clvp.CLVP:
    torch.manual_seed(0)
    return clvp.build().eval()


def trained_twice(
    work: Callable[[str], loop.Work], stage: str, train: Callable[[loop.Work], None]
) -> tuple[Any, Any]:
    """States of a run that went through and of one that stopped after its first step."""
    whole, parts = work("whole"), work("parts")
    train(whole)
    parts.until = 0
    with pytest.raises(loop.OutOfTime):
        train(parts)
    parts.until = time.time() + 600
    train(parts)
    return whole.read_state(stage), parts.read_state(stage)


def assert_same_states(one: Any, other: Any) -> None:
    assert one["step"] == other["step"] == one["steps"]
    for name, weights in one["modules"].items():
        for key, value in weights.items():
            torch.testing.assert_close(other["modules"][name][key], value, rtol=0, atol=0, msg=key)


# --- CLVP: mistakes ---


def test_words_are_found_in_text_and_codes() -> None:
    example = sentence(np.random.default_rng(1), words=3)
    words = clvp.Words.of(example)
    assert len(words.text) == len(words.codes) == 3
    for (first, end), (start, stop) in zip(words.text, words.codes, strict=True):
        said = set(example.codes[start:stop].tolist()) - {CALM_TOKEN}
        own = {100 + int(i) * PER_ID + k for i in example.text[first:end] for k in range(PER_ID)}
        assert own <= said
    assert clvp.spoken(example) == (1, len(example.codes) - 2)


@pytest.mark.parametrize("name", RANK_MISTAKES)
def test_a_mistake_changes_what_is_said(spoken: list[Example], name: str) -> None:
    rng = np.random.default_rng(2)
    for example, other in zip(spoken[1:], spoken, strict=False):
        original = example.codes.copy()
        made = clvp.MISTAKES[name](example, other, rng)
        loud = made[made != CALM_TOKEN]
        assert len(loud) > 0 and not np.array_equal(loud, original[original != CALM_TOKEN])
        assert made.min() >= 0 and made.max() < vqvae.CODES
        np.testing.assert_array_equal(example.codes, original)


def test_mistakes_are_what_they_are_called(spoken: list[Example]) -> None:
    rng = np.random.default_rng(3)
    example, other = spoken[-1], spoken[-2]
    made = {name: mistake(example, other, rng) for name, mistake in clvp.MISTAKES.items()}
    own = set(example.codes.tolist())
    assert len(made["skipped"]) < len(example.codes) < len(made["repeated"])
    assert set(made["skipped"].tolist()) <= own and set(made["repeated"].tolist()) == own
    assert len(made["cut"]) < len(example.codes) < len(made["continued"])
    assert len(made["foreign"]) == len(made["babbled"]) == len(example.codes)
    assert sorted(made["exchanged"]) == sorted(example.codes.tolist())
    np.testing.assert_array_equal(made["continued"][-2:], example.codes[-2:])


def test_misread_texts_differ(spoken: list[Example]) -> None:
    rng = np.random.default_rng(4)
    for example, other in zip(spoken[1:], spoken, strict=False):
        for _ in range(20):
            text = clvp.misread(example, other, rng)
            assert len(text) and not np.array_equal(text, example.text)
            assert text[0] != examples.SPACE and text[-1] != examples.SPACE


def test_stretching_keeps_what_is_said(spoken: list[Example]) -> None:
    made = clvp.stretched(spoken[-1], np.random.default_rng(5), share=0.3)
    assert len(made.codes) == len(made.reading) == len(made.phonemes) != len(spoken[-1].codes)
    before, after = (
        e.phonemes.ravel()[np.append(True, np.diff(e.phonemes.ravel()) != 0)] for e in (spoken[-1], made)
    )
    np.testing.assert_array_equal(after, before)


# --- CLVP: what is trained is what runs ---


class _Engine:
    """Runs the two graphs of CLVP by their definition."""

    def __init__(self, model: clvp.CLVP) -> None:
        self.model = model

    def run(self, graph: str, **inputs: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            outputs = GRAPH_FUNCTIONS[graph](
                self.model, **{k: torch.from_numpy(v) for k, v in inputs.items()}
            )
        return [output.numpy() for output in outputs]


def test_scores_are_the_runtimes(model: clvp.CLVP, spoken: list[Example]) -> None:
    rows = [e.codes for e in spoken[:6]]
    text = spoken[3].text
    drawn = clvp.candidates(rows, 60)
    expected = ranking.clvp_scores(_Engine(model), text.tolist(), drawn)  # type: ignore[arg-type]
    found = clvp.of_texts(model, [text]) @ clvp.of_codes(model, rows, 60).T * model.temperature.exp().detach()
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)
    assert drawn.shape == (6, 60) and drawn[0, len(rows[0])] == CALM_TOKEN


def test_the_training_forward_is_the_modules(model: clvp.CLVP, spoken: list[Example]) -> None:
    with torch.no_grad():
        latents, missing = clvp.text_positions(model, [e.text for e in spoken])
        assert missing.any()
        torch.testing.assert_close(
            clvp.pooled(latents, missing), clvp.of_texts(model, [e.text for e in spoken])
        )
        x = model.speech_emb(torch.from_numpy(clvp.candidates([e.codes for e in spoken], 60)))
        torch.testing.assert_close(
            clvp.towers(model.speech_transformer.transformer, x), model.speech_transformer(x)
        )


def test_the_checkpoint_loader_takes_the_weights(
    model: clvp.CLVP, spoken: list[Example], tmp_path: Path
) -> None:
    torch.save(model.state_dict(), tmp_path / CHECKPOINT_FILES["clvp"])
    loaded = load_network(tmp_path, "clvp")
    assert isinstance(loaded, clvp.CLVP)
    rows = [e.codes for e in spoken[:3]]
    torch.testing.assert_close(clvp.of_codes(loaded, rows, 60), clvp.of_codes(model, rows, 60))
    assert sum(p.numel() for p in model.parameters()) <= 1_200_000
    assert loaded.dims({})["clvp.codes"] == vqvae.CODES


# --- CLVP: training ---


@pytest.fixture
def clvp_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], loop.Work]:
    monkeypatch.setattr(clvp, "judged", lambda *args: {"top": 0.0})
    monkeypatch.setattr(examples, "HELD_OUT", 4)

    def make(name: str) -> loop.Work:
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(6)
        examples._write(folder / "examples.npz", [sentence(rng, int(rng.integers(2, 4))) for _ in range(40)])
        table = torch.randn(vqvae.CODES, 8, generator=torch.Generator().manual_seed(0))
        loop.save({"modules": {"model": {"codebook": table}}, "step": 1, "steps": 1}, folder / "vqvae.pt")
        return loop.Work(folder)

    return make


def test_clvp_learns(clvp_work: Callable[[str], loop.Work], spoken: list[Example]) -> None:
    work = clvp_work("learning")

    def loss(model: clvp.CLVP) -> float:
        torch.manual_seed(0)
        near = np.tile(np.arange(vqvae.CODES)[:, None], (1, 8))
        with torch.no_grad():
            found = clvp.losses(model, clvp.Helpers(), spoken[:8], 60, near, np.random.default_rng(7))
        return float(found["speech"] + found["text"])

    torch.manual_seed(0)
    before = loss(clvp.build())
    clvp.train(work, steps=25, tokens=2000)
    assert loss(clvp.load(work)) < before - 0.3


def test_clvp_goes_on_where_it_stopped(clvp_work: Callable[[str], loop.Work]) -> None:
    whole, parts = trained_twice(clvp_work, clvp.STAGE, lambda work: clvp.train(work, steps=3, tokens=600))
    assert_same_states(whole, parts)


def test_judging_a_perfect_and_an_empty_mind(
    model: clvp.CLVP, spoken: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clvp, "CODE_POSITIONS", 60)
    found = clvp.judged(model, spoken, among=8)
    assert set(found) == {"top", "misread", *clvp.MISTAKES} and all(
        0 <= share <= 1 for share in found.values()
    )
    own = {example.codes.tobytes(): number for number, example in enumerate(spoken)}
    one_hot = torch.eye(len(spoken) + 1)
    texts = {example.text.tobytes(): number for number, example in enumerate(spoken)}
    monkeypatch.setattr(
        clvp, "of_codes", lambda _, rows: one_hot[[own.get(row.tobytes(), -1) for row in rows]]
    )
    monkeypatch.setattr(
        clvp, "of_texts", lambda _, rows: one_hot[[texts.get(row.tobytes(), -1) for row in rows]]
    )
    assert set(clvp.judged(model, spoken, among=8).values()) == {1.0}


# --- the aligner ---


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
    outputs = -(-spoken.mel.shape[1] // aligner.STRIDE)
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
        voice: [said(rng, int(rng.integers(1, 3))) for _ in range(24)] for voice in ("alto", "tenor")
    }
    monkeypatch.setattr(aligner, "read", lambda work, limit: sentences)
    monkeypatch.setattr(aligner, "HELD_OUT", 4)

    def make(name: str) -> loop.Work:
        folder = tmp_path / name
        folder.mkdir()
        loop.save(
            {"modules": {"model": vqvae.VQVAE().state_dict()}, "step": 1, "steps": 1}, folder / "vqvae.pt"
        )
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
        text="A bee.", phonemes="a bi.", ids=np.arange(7), starts=np.array([0, 600, 1200, 1800, 2400, 3000, 3000, 3600]),
        mel={"alto": torch.zeros(80, 12).half(), "tenor": torch.zeros(80, 12).half()},
    )  # fmt: skip
    (tmp_path / "data").mkdir()
    torch.save(
        [row, {**row, "phonemes": "abi.", "starts": row["starts"][:-1]}], tmp_path / "data" / "shard_000.pt"
    )
    torch.save({"shard_000.pt": [torch.tensor([1]), torch.tensor([2])]}, tmp_path / "codes.pt")
    found = aligner.read(loop.Work(tmp_path))
    assert [len(found[voice]) for voice in ("alto", "tenor")] == [2, 2]
    first, second = found["alto"]
    assert first.words is not None and first.words.shape == (2, 2) and second.words is None
    assert first.codes is not None and found["tenor"][0].codes is None
    assert "".join(SYMBOLS[i] for i in first.symbols) == " a bee "

"""Training of CLVP, on sentences that are made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from training import assert_same_states, trained_twice  # noqa: E402

from tortoise_rt import ranking  # noqa: E402
from tortoise_rt.engines.demo.train import clvp, examples, loop, mistakes, vqvae  # noqa: E402
from tortoise_rt.engines.demo.train.examples import Example  # noqa: E402
from tortoise_rt.export.checkpoints import load_network  # noqa: E402
from tortoise_rt.export.models.graphs import GRAPH_FUNCTIONS  # noqa: E402
from tortoise_rt.spec import CALM_TOKEN, CHECKPOINT_FILES  # noqa: E402

PER_ID = 3  #: codes of each text id, of the made-up sentences
RANK_MISTAKES = sorted(mistakes.MISTAKES)


def sentence(rng: np.random.Generator, words: int = 4) -> Example:
    """Words of two or three ids; every id is spoken as codes of its own, with silence before and behind."""
    text: list[int] = []
    for word in range(words):
        letters = mistakes.FIRST_LETTER + rng.integers(60, size=rng.integers(2, 4))
        text += [examples.SPACE_TOKEN] * (word > 0) + letters.tolist()
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


# --- CLVP: mistakes ---


def test_words_are_found_in_text_and_codes() -> None:
    example = sentence(np.random.default_rng(1), words=3)
    words = mistakes.Words.of(example)
    assert len(words.text) == len(words.codes) == 3
    for (first, end), (start, stop) in zip(words.text, words.codes, strict=True):
        said = set(example.codes[start:stop].tolist()) - {CALM_TOKEN}
        own = {100 + int(i) * PER_ID + k for i in example.text[first:end] for k in range(PER_ID)}
        assert own <= said
    assert mistakes.spoken(example) == (1, len(example.codes) - 2)


@pytest.mark.parametrize("name", RANK_MISTAKES)
def test_a_mistake_changes_what_is_said(spoken: list[Example], name: str) -> None:
    rng = np.random.default_rng(2)
    for example, other in zip(spoken[1:], spoken, strict=False):
        original = example.codes.copy()
        made = mistakes.MISTAKES[name](example, other, rng)
        loud = made[made != CALM_TOKEN]
        assert len(loud) > 0 and not np.array_equal(loud, original[original != CALM_TOKEN])
        assert made.min() >= 0 and made.max() < vqvae.CODES
        np.testing.assert_array_equal(example.codes, original)


def test_mistakes_are_what_they_are_called(spoken: list[Example]) -> None:
    rng = np.random.default_rng(3)
    example, other = spoken[-1], spoken[-2]
    made = {name: mistake(example, other, rng) for name, mistake in mistakes.MISTAKES.items()}
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
            text = mistakes.misread(example, other, rng)
            assert len(text) and not np.array_equal(text, example.text)
            assert text[0] != examples.SPACE_TOKEN and text[-1] != examples.SPACE_TOKEN


def test_stretching_keeps_what_is_said(spoken: list[Example]) -> None:
    made = mistakes.stretched(spoken[-1], np.random.default_rng(5), share=0.3)
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
        table = torch.randn(vqvae.CODES, 8, generator=torch.Generator().manual_seed(0))
        loop.save({"modules": {"model": {"codebook": table}}, "step": 1, "steps": 1}, folder / "vqvae.pt")
        work = loop.Work(folder)
        made_up = [sentence(rng, int(rng.integers(2, 4))) for _ in range(40)]
        examples._write(folder / "examples.npz", made_up, vqvae.fingerprint(work))
        return work

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
    assert set(found) == {"top", "misread", *mistakes.MISTAKES} and all(
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

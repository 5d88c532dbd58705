"""Training of the demo: corpus, alignment, batches, optimiser, restarts. No teacher and no audio are needed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tortoise_rt.engines.demo.train import (  # noqa: E402
    autoregressive,
    corpus,
    examples,
    latents,
    loop,
    muon,
    shards,
    vqvae,
)
from tortoise_rt.spec import CALM_TOKEN, TAIL_TOKENS  # noqa: E402

GLOSSES = {
    "noun": '00001740 06 n 01 kettle 0 000 | a metal pot for boiling water; "put the kettle on"; "Is the kettle hot?"  ',
    "verb": '00001741 29 v 01 pour 0 000 | cause to run; "pour water over the floor"  ',
    "adj": '00001742 00 a 01 warm 0 000 | having a pleasant heat (not hot); "a warm body -- J. S."  ',
    "adv": '00001743 02 r 01 gladly 0 000 | with pleasure; "we will gladly help"  ',
}
COUNTED = "kettle%1:06:00:: 1 9\npour%2:29:00:: 1 4\nwarm%3:00:00:: 1 3\ngladly%4:02:00:: 1 2\n"


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for part, line in GLOSSES.items():
        (folder / f"data.{part}").write_text("  1 licence text | not a gloss\n" + line + "\n")
    (folder / "cntlist.rev").write_text(COUNTED)
    (folder / "noun.exc").write_text("oxen ox\n")
    (folder / "verb.exc").write_text("swam swim\nswum swim\n")
    return folder


def test_wordnet_gives_examples_definitions_and_words(wordnet: Path) -> None:
    source = corpus.WordNet(wordnet)
    assert list(source.examples()) == [
        "Put the kettle on.",
        "Is the kettle hot?",
        "Pour water over the floor.",
        "A warm body.",
        "We will gladly help.",
    ]
    assert list(source.definitions())[0] == "A metal pot for boiling water."
    assert "Having a pleasant heat." in list(source.definitions())
    assert source.words("n") == ["kettle"] and source.words("a") == ["warm"]
    assert source.past() == ["poured"] and source.plurals() == ["kettles"] and source.things() == ["kettle"]
    assert source.irregular("verb") == {"swim": ["swam", "swum"]}


def test_corpus_is_reproducible_plain_and_without_held_out_sentences(wordnet: Path, tmp_path: Path) -> None:
    built = corpus.build(wordnet, fraction=0.01)
    assert built == corpus.build(wordnet, fraction=0.01) != corpus.build(wordnet, seed=8, fraction=0.01)
    assert {kind for kind, _ in built} == set(corpus.QUOTAS)
    held_out = {
        corpus.key(line) for path in corpus.HELD_OUT.glob("*.txt") for line in path.read_text().splitlines()
    }
    assert len(held_out) > 80
    assert not held_out & {corpus.key(text) for _, text in built}
    for kind, text in built:
        assert corpus.speakable(text, *corpus.QUOTAS[kind][1:]), text
        assert not any(c.isdigit() or c in "{}" for c in text)
    corpus.write(built, tmp_path / "corpus.txt.gz")
    assert corpus.read(tmp_path / "corpus.txt.gz") == built


def test_numbers_in_patterns_are_said() -> None:
    draw = corpus._numbers(random.Random(0))
    assert all(draw["tens"]().isdigit() and draw["money"]().startswith("$") for _ in range(20))


def test_reading_follows_the_words() -> None:
    # "ab cd": two words of two ids each; the phonemes "a", "b", " ", "c", "d" between two pads, 1200 samples each
    row = dict(phonemes="ab cd", starts=np.arange(8) * 1200)
    text = [10, 11, examples.SPACE_TOKEN, 12, 13]
    at = examples.reading_of(row, text, 7)  # a code is 1115 samples
    assert np.all(np.diff(at) >= 0)
    assert at[0] < 1 and 0 <= at[1] < 2 and 3 <= at[4] < 5 and at[6] > 4.5
    # other words than the text's: evenly
    even = examples.reading_of(dict(row, phonemes="abxcd"), text, 7)
    assert np.all(np.diff(even) >= 0) and even[-1] == pytest.approx(4.99)


def made_up(seed: int, text: int, codes: int) -> examples.Example:
    r = np.random.default_rng(seed)
    reading = np.linspace(0, text - 0.1, codes).astype(np.float32)
    return examples.Example(
        r.integers(3, 255, text), r.integers(0, 1024, codes), reading, r.integers(0, 99, (codes, 2)), 0, seed
    )


def test_batches_are_what_the_network_reads_when_it_speaks() -> None:
    torch.manual_seed(0)
    model = autoregressive.build().eval()
    drawn = [made_up(1, 20, 40), made_up(2, 25, 31)]
    batch, voice = autoregressive.collate(drawn), torch.randn(1, autoregressive.DIM)
    with torch.no_grad():
        x, looks = autoregressive.hidden(model, batch, voice, autoregressive.READING_LAYERS)
        for row, example in enumerate(drawn):
            text = torch.tensor([[autoregressive.START_TEXT, *example.text, 0, 0]])
            codes = torch.tensor([[autoregressive.START, *example.codes]])
            whole = model.hidden(voice, text, codes)[0]
            torch.testing.assert_close(x[row, : len(whole)], whole, atol=1e-5, rtol=1e-5)
            assert int(batch.is_code[row].sum()) == len(example.codes) + 1
    assert len(looks) == len(autoregressive.READING_LAYERS) and all(float(look) > 0 for look in looks)
    assert len(batch.next_text) == int(batch.is_text.sum())
    assert batch.next_codes[40] == autoregressive.STOP and batch.read_codes[0] == CALM_TOKEN


def test_a_restarted_training_gives_the_same_weights(tmp_path: Path) -> None:
    def train(folder: Path, until: float = float("inf")) -> dict[str, torch.Tensor]:
        folder.mkdir(exist_ok=True)
        work = loop.Work(folder, until=until)
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)

        def step(number: int, rng: np.random.Generator) -> dict[str, float]:
            x = torch.from_numpy(rng.standard_normal((8, 4)).astype(np.float32))
            loss = (model(x) - x + 0.1 * torch.randn(8, 4)).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss.item()}

        loop.run(work, "toy", step, 150, {"model": model}, [optimizer], loop.cosine(10))
        return work.weights("toy")

    whole = train(tmp_path / "whole")
    with pytest.raises(loop.OutOfTime, match="toy, step 1 of 150: stopped"):
        train(tmp_path / "parts", until=0)
    assert not loop.Work(tmp_path / "parts").finished("toy")
    parts = train(tmp_path / "parts")
    assert loop.Work(tmp_path / "parts").finished("toy")
    for key, value in whole.items():
        assert torch.equal(value, parts[key]), key
    assert len((tmp_path / "whole" / "results.jsonl").read_text().splitlines()) == 2


def test_muon_moves_by_an_orthogonal_matrix() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(16, 48))  # queries, keys and values side by side
    weight.grad = torch.randn(16, 48)
    muon.Muon([weight], lr=1.0, decay=0.0).step()
    for part in weight.detach().chunk(3, 1):
        singular = torch.linalg.svdvals(part)
        assert float(singular.min()) > 0.4 and float(singular.max()) < 1.3


def test_a_linear_map_folds_into_the_first_convolution() -> None:
    torch.manual_seed(0)
    source = torch.randn(300, 8)
    matrix, offset = torch.randn(8, 5), torch.randn(5)
    found, shift, missed = latents.linear_map(source, source @ matrix + offset)
    assert missed < 1e-4
    torch.testing.assert_close(found, matrix, atol=0.01, rtol=0.01)
    conv, wide = nn.Conv1d(5, 3, 7), nn.Conv1d(8, 3, 7)
    weights = {"conv_pre.weight": conv.weight.detach(), "conv_pre.bias": conv.bias.detach()}
    latents.fold_input(weights, "conv_pre", matrix, offset)
    wide.load_state_dict({k.removeprefix("conv_pre."): v for k, v in weights.items()})
    x = torch.randn(2, 8, 20)
    mapped = (x.transpose(1, 2) @ matrix + offset).transpose(1, 2)
    torch.testing.assert_close(wide(x), conv(mapped), atol=1e-4, rtol=1e-4)


def test_audio_is_silent_beyond_the_ends() -> None:
    wav = np.full(2000, 32767, np.int16)
    early, late = shards.cut(wav, -700, 1000).numpy(), shards.cut(wav, 1700, 1000).numpy()
    assert np.all(early[:700] == 0) and np.all(early[700:] == 1)
    assert np.all(late[:300] == 1) and np.all(late[300:] == 0)
    for beyond in (-3000, 3000):
        assert np.all(shards.cut(wav, beyond, 1000).numpy() == 0)


def test_silence_has_the_code_the_runtime_expects() -> None:
    torch.manual_seed(3)
    model = vqvae.VQVAE().eval()
    before = model.codebook.clone()
    model.place_silence()
    silent = torch.full((1, 80, 64), float(np.log(1e-5)))
    assert int(model.encode(silent)[0, 8]) == CALM_TOKEN
    near = (model.codebook - model.codebook[CALM_TOKEN]).pow(2).sum(1).argsort()[:3].tolist()
    assert set(near) == {CALM_TOKEN, *TAIL_TOKENS}
    assert sorted(before.sum(1).tolist()) == sorted(model.codebook.sum(1).tolist())


def test_kept_weights_are_the_model_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "KEPT", tmp_path / "kept")
    torch.manual_seed(0)
    work, model = loop.Work(tmp_path, from_kept=True), vqvae.VQVAE()
    modules = {"model": model.state_dict(), "judge": {"x": torch.ones(3)}}
    loop.save({"modules": modules, "step": 5, "steps": 5}, work.state(vqvae.STAGE))
    trained = vqvae.fingerprint(work)
    path = work.keep(vqvae.STAGE, loop.KEPT)
    work.state(vqvae.STAGE).unlink()
    kept = work.weights(vqvae.STAGE)
    assert path.stat().st_size < sum(v.numel() for v in model.state_dict().values()) * 2
    assert kept.keys() == {k for k in model.state_dict() if not k.startswith(loop.LEFT_OUT[vqvae.STAGE])}
    for key, value in kept.items():
        torch.testing.assert_close(value, model.state_dict()[key].half().float())
    assert torch.equal(vqvae.load(work).codebook, kept["codebook"])
    assert vqvae.fingerprint(work) == trained
    with pytest.raises(FileNotFoundError, match="run the stage vqvae first, or .*: --from-kept"):
        vqvae.load(loop.Work(tmp_path))


def test_latents_are_taught_the_mel_of_the_code_they_have_read() -> None:
    example = made_up(3, 20, 6)
    mel = torch.randn(80, 24).half()
    mels = autoregressive.Mels.__new__(autoregressive.Mels)
    mels.kept = {
        (example.shard, example.row): mel[:, :22]
    }  # padded with silence to whole codes, and two more
    found = mels.of(example)
    assert found.shape == (8, 320)
    frame = (mel[:, 5].float() + 6.0) / 3.2  # the second of the second code
    torch.testing.assert_close(found[1, 80:160], frame)
    batch = autoregressive.collate([example], mels=[found[:6]])
    assert batch.read_mels.shape == (7, 320) and torch.equal(batch.read_mels[1:], found[:6])
    silent = (float(np.log(1e-5)) + 6.0) / 3.2
    torch.testing.assert_close(batch.read_mels[0], torch.full((320,), silent))
    assert len(autoregressive.collate([example]).read_mels) == 0

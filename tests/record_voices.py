"""Records what tortoise-tts makes of voices: latents of folders of clips, of pooled and averaged voices, detections.

    PYTHON tests/record_voices.py SDIST LJ

PYTHON has what tortoise-tts 3.0.0 needs, torchaudio included; SDIST is its unpacked package, LJ the folder of its
public-domain voice "lj". The networks are those of tests/data/tiny-a. Writes tests/data/voices.npz.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).resolve().parent / "data"
NAME = "voices.npz"


def write_clips(folder: Path) -> None:
    """Voices "a" and "b": seeded noise that swells, at several rates and lengths, in one and two channels, 16 bits."""
    import soundfile

    for number, (file, rate, samples, channels) in enumerate(
        [
            ("a/1.wav", 22050, 17_000, 1),  # shorter than either network hears
            ("a/2.wav", 44100, 400_001, 1),  # longer than both
            ("b/1.wav", 22050, 132_300, 2),  # as long as the autoregressive one's
            ("b/2.wav", 16000, 90_000, 1),
        ]
    ):
        noise = np.random.default_rng(number).integers(-12_000, 12_000, (samples, channels), np.int32)
        swell = (np.arange(samples) // 50 % 200)[:, None]  # whole numbers alone: the same on every machine
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / file, (noise * swell // 200).astype(np.int16), rate, subtype="PCM_16")


def main(sdist: str, lj: str) -> None:
    sys.path.insert(0, sdist)
    import torch
    from tortoise import api
    from tortoise.models.autoregressive import UnifiedVoice
    from tortoise.models.classifier import AudioMiniEncoderWithClassifierHead
    from tortoise.models.diffusion_decoder import DiffusionTts
    from tortoise.utils import audio

    tiny = DATA / "tiny-a"
    config = json.loads((tiny / "config.json").read_text())
    convert = audio.wav_to_univnet_mel  # its default device is the one that a GPU has
    api.wav_to_univnet_mel = lambda wav, do_normalization, device: convert(wav, do_normalization, "cpu")

    def load(kind: Any, section: str, file: str) -> Any:
        settings = config[section]
        network = kind(settings.pop("classes"), **settings) if "classes" in settings else kind(**settings)
        network.load_state_dict(torch.load(tiny / file, weights_only=True), strict=False)
        return network.eval()

    tts = api.TextToSpeech.__new__(api.TextToSpeech)
    tts.device = torch.device("cpu")
    tts.autoregressive = load(UnifiedVoice, "autoregressive", "autoregressive.pth")
    tts.diffusion = load(DiffusionTts, "diffusion", "diffusion_decoder.pth")
    classifier = load(AudioMiniEncoderWithClassifierHead, "classifier", "classifier.pth")
    random.randint = lambda low, high: (low + high) // 2  # of a long clip the middle, as in tortoise-rt

    made: dict[str, np.ndarray] = {}

    def keep(name: str, latents: Any) -> None:
        made[f"{name}_auto"], made[f"{name}_diffusion"] = (part.detach().numpy() for part in latents)

    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        folder = Path(place)
        write_clips(folder)
        for name in ("x", "y"):
            (folder / name).mkdir()
        (folder / "lj").symlink_to(lj)
        for voices in (["a"], ["b"], ["a", "b"], ["lj"]):
            clips, _ = audio.load_voices(voices, [place])
            keep("+".join(voices), tts.get_conditioning_latents(clips))
        for voice, name in (("a", "x"), ("b", "y")):
            latents = tts.get_conditioning_latents(audio.load_voice(voice, [place])[0])
            torch.save(latents, folder / name / f"{name}.pth")
        keep("x+y", audio.load_voices(["x", "y"], [place])[1])
        for file in ("a/1.wav", "a/2.wav", "b/1.wav", "lj/1.wav", "lj/2.wav"):
            clip = audio.load_audio(str(folder / file), 24000)[:, :220000]
            probability = torch.softmax(classifier(clip.unsqueeze(0)), -1)[0][0]
            made[f"{file}_probability"] = probability.numpy()
    np.savez_compressed(DATA / NAME, **made)
    for name, array in made.items():
        print(name, array.shape, array.ravel()[:3])


if __name__ == "__main__":
    main(*sys.argv[1:])

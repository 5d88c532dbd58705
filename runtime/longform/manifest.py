"""What a folder's reading is: written before the first clip, so that whoever goes on finds the same clips and seeds."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .._version import __version__
from ..config import Settings, settings_arguments
from ..engine import Engine
from ..errors import OutputError
from ..output import complete_file
from ..rng import MAX_SEED, nth_seed
from ..text import Tokenizer
from .document import Document
from .plan import ENDS, Passage

NAME = "manifest.json"
FORM = 1
MAX_BYTES = 256 << 20


@dataclass
class Clip:
    """One clip of a reading, and what is known of its takes once they are made."""

    passage: Passage
    seed: int
    take: int = 0  #: the one that is joined
    sha256: list[str] = field(default_factory=list)  #: of the file of each take
    seconds: list[float] = field(default_factory=list)  #: their lengths
    sound: bool = True  #: whether each ended by itself and, where it was checked, says its text

    def forget(self) -> None:
        """Its takes are to be made anew."""
        self.take, self.sha256, self.seconds, self.sound = 0, [], [], True


@dataclass
class Manifest:
    """A reading: what it was made from, its clips, and the files that they were joined to."""

    text: dict[str, str]  #: name and SHA-256 of what is read
    seed: int  #: clip n is said with seed + n, unless it was asked for again
    voices: dict[str, str]  #: speaker ("" is the narrator) -> SHA-256 of clips or latents
    engine: dict[str, Any]  #: what decides how it sounds: fingerprint, backend, precision
    settings: dict[str, Any]  #: by the names of arguments
    tokenizer: str  #: SHA-256 of the file, and how text is cleaned
    chapters: list[str]  #: their titles
    clips: list[Clip]
    files: list[dict[str, Any]] = field(
        default_factory=list
    )  #: joined: name, seconds, and where chapters begin

    def key(self, clip: Clip) -> str:
        """Names all that decides how a clip sounds; a file with this key in its name is that clip."""
        voice = self.voices[clip.passage.speaker]
        decides = [clip.passage.text, clip.seed, voice, self.engine, self.settings, self.tokenizer]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    def file_name(self, number: int, take: int) -> str:
        """Of a clip's take."""
        name = f"{number:04d}-{self.key(self.clips[number])}"
        return f"{name}.wav" if self.takes == 1 else f"{name}.{take}.wav"

    @property
    def takes(self) -> int:
        """That are kept of each clip."""
        return int(self.settings["k"])

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        content = {"format": FORM, "tortoise_rt": __version__, **vars(self)}
        content["clips"] = [
            {
                "files": [self.file_name(number, take) for take in range(self.takes)],
                **asdict(clip.passage),
                **{name: value for name, value in vars(clip).items() if name != "passage"},
            }
            for number, clip in enumerate(self.clips)
        ]
        with complete_file(folder / NAME) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.write("\n")

    def take_over(self, before: Manifest) -> int:
        """Seeds of clips that say what they said ``before``, and all that is known of those that sound as they did.

        -> how many clips sound otherwise, or are new.
        """
        kept: defaultdict[tuple[str, str], deque[Clip]] = defaultdict(deque)
        for clip in before.clips if before.seed == self.seed else ():
            kept[clip.passage.speaker, clip.passage.text].append(clip)
        new = 0
        for number, clip in enumerate(self.clips):
            same = kept[clip.passage.speaker, clip.passage.text]
            old = same.popleft() if same else None
            if old is not None:
                clip.seed = old.seed
            if old is not None and self.key(clip) == before.key(old):
                self.clips[number] = replace(old, passage=clip.passage)
            else:
                new += 1
        return new

    def differences(self, other: Manifest) -> list[str]:
        """What ``other`` would have otherwise, in words; of the clips, how many."""
        found = [
            f"{name} was {_shown(old)}, is {_shown(new)}"
            for name, old, new in _compared(self._named(), other._named())
            if old != new
        ]
        texts = [clip.passage.text for clip in self.clips]
        if texts != [clip.passage.text for clip in other.clips]:
            found.append("the text or how it is cut has changed")
        return found

    def _named(self) -> dict[str, Any]:
        """What decides how it sounds, by a name that a person knows."""
        return {
            "seed": self.seed,
            **{f"voice {speaker}".strip(): digest for speaker, digest in self.voices.items()},
            **{f"engine {name}": value for name, value in self.engine.items()},
            **self.settings,
            "tokenizer": self.tokenizer,
        }


def planned(
    document: Document,
    passages: Sequence[Passage],
    voices: Mapping[str, Any],
    engine: Engine,
    settings: Settings,
    tokenizer: Tokenizer | None,
    seed: int,
) -> Manifest:
    """A reading of which nothing is made yet. ``voices``: by speaker, None being a random one."""
    text = json.dumps([[chapter.title, chapter.paragraphs] for chapter in document.chapters])
    return Manifest(
        text={"name": document.name, "sha256": hashlib.sha256(text.encode()).hexdigest()},
        seed=seed,
        voices={
            n: f"random {voice_seed(seed, n)}" if v is None else content_hash(v) for n, v in voices.items()
        },
        engine=engine_identity(engine),
        settings=settings_identity(settings),
        tokenizer=tokenizer_identity(tokenizer),
        chapters=[chapter.title for chapter in document.chapters],
        clips=[Clip(passage, nth_seed(seed, n)) for n, passage in enumerate(passages)],
    )


def voice_seed(seed: int, speaker: str) -> int:
    """That of a speaker's random voice: the reading's for the narrator, one of its own for each other name."""
    return nth_seed(seed, zlib.crc32(speaker.encode()))


def load(folder: Path) -> Manifest | None:
    """The manifest of a reading, None where there is none. Raises an OutputError for a damaged one."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        content = json.loads(data)
        if content["format"] != FORM:
            raise ValueError(f"format {content['format']}; this version reads {FORM}")
        known = {entry.name for entry in fields(Manifest)} - {"clips"}
        made = Manifest(**{name: content[name] for name in known}, clips=list(map(_clip, content["clips"])))
        if not all(clip.passage.speaker in made.voices for clip in made.clips) or made.takes < 1:
            raise ValueError("a clip has no voice")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{path} is damaged or no manifest of a reading ({type(error).__name__}: {error}): put back a copy, or read into "
            "another folder"
        ) from None
    return made


def _clip(entry: Mapping[str, Any]) -> Clip:
    passage = Passage(**{f.name: entry[f.name] for f in fields(Passage)})
    clip = Clip(passage, **{f.name: entry[f.name] for f in fields(Clip) if f.name != "passage"})
    if passage.ends not in ENDS or not 0 <= clip.seed <= MAX_SEED:
        raise ValueError(f"clip {entry}")
    return clip


def _compared(old: dict[str, Any], new: dict[str, Any]) -> Iterable[tuple[str, Any, Any]]:
    return [(name, old.get(name), new.get(name)) for name in {**old, **new}]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:12] + "..."


def engine_identity(engine: Engine) -> dict[str, Any]:
    """What of an engine decides how it sounds."""
    info = engine.info
    return {
        "fingerprint": info.fingerprint,
        "backend": info.backend,
        "precision": dict(sorted(info.precision.items())),
    }


def settings_identity(settings: Settings) -> dict[str, Any]:
    """What of settings decides how a clip sounds, by the names of arguments."""
    arguments = settings_arguments(settings)
    del arguments["batch_rows"]
    return arguments


def tokenizer_identity(tokenizer: Tokenizer | None) -> str:
    """A tokenizer's file and how it cleans."""
    if tokenizer is None:
        return ""
    return f"{hashlib.sha256(tokenizer.path.read_bytes()).hexdigest()} {tokenizer.clean.__name__}"


def content_hash(voice: Any) -> str:
    """SHA-256 of a voice's arrays and weights, whatever it is called."""
    digest = hashlib.sha256()
    _feed(digest, voice)
    return digest.hexdigest()


def _feed(digest: Any, part: Any) -> None:
    if isinstance(part, np.ndarray):
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    elif is_dataclass(part):
        for entry in fields(part):
            if entry.name not in ("name", "fingerprint"):
                digest.update(entry.name.encode())
                _feed(digest, getattr(part, entry.name))
    elif isinstance(part, Sequence) and not isinstance(part, str):
        digest.update(f"{len(part)} parts".encode())
        for item in part:
            _feed(digest, item)
    else:
        digest.update(repr(part).encode())

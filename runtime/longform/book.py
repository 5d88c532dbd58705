"""A reading in a folder: the clips that are there, those to be made, and what they are joined to.

A clip's file bears a name made of all that decides how it sounds, and appears only when it is complete. So the files
are the record of what is done: a process may be killed at any point, and who goes on makes what is missing. The
manifest says what there is to be made, with which seeds, and is written before the first clip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from ..audio import write_wav
from ..autoregressive import ROWS
from ..bundle import file_sha256
from ..checking import retried
from ..conditioning import resolve
from ..config import Settings, check_number
from ..engine import Engine
from ..errors import OutputError, SettingsError, TextError, TortoiseError
from ..fitting import fitting
from ..output import locked_folder
from ..pipeline import Pipeline, check_seed
from ..rng import Philox, fresh_seed
from ..scheduler import Scheduler, Share
from ..spec import SAMPLE_RATE
from ..text import Tokenizer
from ..voice import Voice, VoiceLatents
from ..word_times import write_words
from . import manifest as manifests
from .document import Document
from .join import (
    Joined,
    Joining,
    Progress,
    Sound,
    check_format,
    clip_samples,
    gains,
    join,
    loudness,
    read_clip,
)
from .manifest import Clip, Manifest
from .plan import LENGTH, heard, plan

CLIPS = "clips"
LENGTHS = (20, 1000)  #: characters of a clip, about, at least and at most
IN_FLIGHT = 4  #: clips that are made at a time
DOUBTFUL = (
    "may not say its text"  #: in the comment of a clip that did not end by itself, or was heard to be wrong
)
_OURS = re.compile(r"\d{4,}-([0-9a-f]{16}(?:\.\d+)?)\.wav")
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.part")

AnyVoice = Voice | VoiceLatents | None  #: None: a random one


def _quiet(stage: str, done: int, total: int) -> None:
    pass


class Book:
    """A document read into a folder, which is locked until the book is closed."""

    def __init__(
        self,
        folder: str | Path,
        document: Document,
        engine: Engine,
        voice: AnyVoice,
        settings: Settings,
        seed: int | None = None,
        *,
        cast: Mapping[str, AnyVoice] | None = None,
        tokenizer: Tokenizer | None = None,
        length: int | None = None,
        update: bool = False,
    ) -> None:
        """Begin a reading, or go on with the one in ``folder``, which is created where its parent exists.

        ``cast``: voices of lines that begin with a name and a colon. ``seed``: that of the folder's reading, else a fresh
        one. ``length``: characters of a clip, about; by default what the engine says well, else the original's 200.
        Where the folder's reading differs, an OutputError says in what; with ``update`` clips that say the same stay, and
        the others are made anew.
        """
        self.folder, self._engine, self._settings = Path(folder), engine, settings
        pipeline = Pipeline(engine, tokenizer)
        self._tokenizer = pipeline.tokenizer
        self._voices: dict[str, AnyVoice] = {"": voice, **(cast or {})}
        for speaker in self._voices.values():
            pipeline.check(speaker, settings)
        length = engine.info.defaults.get("clip_length", LENGTH) if length is None else length
        check_number("clip_length", length, *LENGTHS, integer=True)
        fits, names = fitting(engine, self._tokenizer), set(self._voices) - {""}
        passages = plan(document, fits, names, length, settings.redaction)
        if settings.redaction:
            passages = heard(passages)
        for passage in passages:
            try:
                pipeline.prompt(passage.text, settings)  # raises for brackets that are wrong
            except TextError as error:
                raise TextError(f"in {passage.text[:60]!r}: {error}") from None
        self._prepare()
        with ExitStack() as held:
            held.enter_context(
                locked_folder(
                    self.folder, OutputError(f"another process is reading into {folder}: wait for it")
                )
            )
            before = manifests.load(self.folder)
            if seed is None:
                seed = before.seed if before else fresh_seed()
            self.manifest = manifests.planned(
                document, passages, self._voices, engine, settings, self._tokenizer, check_seed(seed)
            )
            if before is not None:
                self._go_on(before, update)
            self.manifest.save(self.folder)
            # Last, as a folder with anything in it and no manifest is refused.
            (self.folder / CLIPS).mkdir(exist_ok=True)
            self._place()
            self._held = held.pop_all()

    # --- for callers ---

    def __enter__(self) -> Book:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others at the folder."""
        self._held.close()

    def missing(self) -> list[int]:
        """Numbers of the clips that are still to be made."""
        return [
            n for n in range(len(self.manifest.clips)) if not all(path.is_file() for path in self.paths(n))
        ]

    def paths(self, number: int) -> list[Path]:
        """Where the takes of a clip are, or will be."""
        takes = range(self.manifest.takes)
        return [self.folder / CLIPS / self.manifest.file_name(number, take) for take in takes]

    def doubtful(self) -> list[int]:
        """Clips that did not end by themselves, or that an aligner heard otherwise than they are written."""
        return [number for number, clip in enumerate(self.manifest.clips) if not clip.sound]

    def again(self, numbers: Mapping[int, int | None]) -> None:
        """Have clips made anew, each with the seed given or a fresh one."""
        for number, seed in numbers.items():
            clip = self._clip(number)
            clip.forget()
            clip.seed = fresh_seed() if seed is None else check_seed(seed)
        self.manifest.save(self.folder)

    def choose(self, takes: Mapping[int, int]) -> None:
        """Which take of a clip is joined; the first unless said otherwise."""
        for number, take in takes.items():
            clip = self._clip(number)
            if not 0 <= take < self.manifest.takes:
                raise SettingsError(
                    f"clip {number} has the takes 0 to {self.manifest.takes - 1}, and no {take}: more are kept with "
                    "candidates (--candidates)"
                )
            clip.take = take
        self.manifest.save(self.folder)

    def render(self, progress: Progress = _quiet, share: Share | None = None) -> int:
        """Make the clips that are not there, several at a time; -> how many. ``progress``: ("reading", done, in all).

        ``share``: of a scheduler of the book's engine, closed at the end; without one the book has a scheduler of its own,
        a strict one. However it ends, what is there then counts. What a clip failed with names the clip.
        """
        self._verify()
        missing, total = self.missing(), len(self.manifest.clips)
        progress("reading", total - len(missing), total)
        rows = min(ROWS, self._settings.ar.batch_rows or ROWS, IN_FLIGHT * self._settings.ar.samples)
        try:
            if missing:
                for absent in missing:  # what is made now need not be what was
                    self.manifest.clips[absent].sha256 = []
                with (
                    ThreadPoolExecutor(IN_FLIGHT, "clip") as threads,
                    # Closed first, which ends what the threads wait for. Strict: a clip's bits depend on no other clip.
                    share or Scheduler(self._engine, self._tokenizer, rows=rows, strict=True) as scheduler,
                ):
                    voices = {
                        name: self._resolved(name, voice, scheduler) for name, voice in self._voices.items()
                    }
                    rest, flying = iter(missing), set[Future[None]]()
                    for done in range(total - len(missing), total):
                        while len(flying) < IN_FLIGHT and (number := next(rest, None)) is not None:
                            flying.add(threads.submit(self._make, number, scheduler, voices))
                        landed = wait(flying, return_when=FIRST_COMPLETED).done.pop()
                        flying.remove(landed)
                        landed.result()
                        progress("reading", done + 1, total)
        finally:
            self._note()
            self.manifest.save(self.folder)
        self._tidy()
        return len(missing)

    def join(
        self, suffix: str = ".wav", joining: Joining | None = None, progress: Progress = _quiet
    ) -> list[Joined]:
        """Join the clips to ``combined`` with this suffix (FORMATS), or to a file for each chapter."""
        joining = joining or Joining()
        check_format(suffix)
        if missing := self.missing():
            raise SettingsError(
                f"{len(missing)} clips are not made yet, the first is {missing[0]}: render them"
            )
        sounds, levels, chapter = [], [], -1
        for number, clip in enumerate(self.manifest.clips):
            path, passage = self.paths(number)[clip.take], clip.passage
            title = self.manifest.chapters[passage.chapter] if passage.chapter != chapter else None
            chapter = passage.chapter
            sounds.append(Sound(path, clip_samples(path), passage.ends, passage.text, title))
            if joining.match_loudness:
                levels.append(loudness(read_clip(path)))
                progress("measuring", number + 1, len(self.manifest.clips))
        gained = gains(levels) if joining.match_loudness else [1.0] * len(sounds)
        starts = [
            n for n, sound in enumerate(sounds) if n == 0 or (joining.by_chapter and sound.title is not None)
        ]
        joined = []
        for part, (first, last) in enumerate(zip(starts, [*starts[1:], len(sounds)], strict=True), 1):
            name = f"chapter_{part:02d}" if joining.by_chapter else "combined"
            path = self.folder / f"{name}{suffix.lower()}"
            joined.append(join(path, sounds[first:last], gained[first:last], joining, progress))
            if joining.subtitles is not None:
                write_words(path.with_suffix(joining.subtitles), joined[-1].captions)
        self.manifest.files = [file.as_json() for file in joined]
        self.manifest.save(self.folder)
        return joined

    # --- inside ---

    def _prepare(self) -> None:
        """Create the folder; raises an OutputError for one that holds something else."""
        if not self.folder.parent.is_dir():
            raise OutputError(
                f"the folder {self.folder.parent} does not exist: create it, or read into another"
            )
        try:
            self.folder.mkdir(exist_ok=True)
            others = [path.name for path in self.folder.iterdir() if not _UNFINISHED.fullmatch(path.name)]
        except FileExistsError:
            raise OutputError(f"{self.folder} is a file: name a folder") from None
        except OSError as error:
            raise OutputError(f"cannot use the folder {self.folder}: {error.strerror}") from None
        if others and manifests.NAME not in others:
            raise OutputError(
                f"{self.folder} holds other files ({', '.join(sorted(others)[:3])}) and no reading: name an empty folder, or "
                "a new one"
            )

    def _go_on(self, before: Manifest, update: bool) -> None:
        """Take over what the folder's reading has of this one; raises an OutputError where they differ, unless ``update``."""
        new = self.manifest.take_over(before)
        if (differences := before.differences(self.manifest)) and not update:
            raise OutputError(
                f"{self.folder} holds another reading ({'; '.join(differences)}): go on with the same text and settings, have "
                f"{new} of {len(self.manifest.clips)} clips made anew (--update), or read into another folder"
            )
        self.manifest.files = [] if differences else before.files

    def _place(self) -> None:
        """Give clips that are there the numbers that they have now, and remove what a killed process left."""
        there = {}
        for path in (self.folder / CLIPS).iterdir():
            if named := _OURS.fullmatch(path.name):
                there[named[1]] = path
        for path in (*self.folder.iterdir(), *(self.folder / CLIPS).iterdir()):
            if _UNFINISHED.fullmatch(path.name):
                path.unlink()
        for number in self.missing():
            for path in self.paths(number):
                key = path.name.partition("-")[2].removesuffix(".wav")
                if key in there and not path.exists():
                    there.pop(key).rename(path)

    def _tidy(self) -> None:
        """Remove clips that are no longer planned, once all are there."""
        planned = {path.name for number in range(len(self.manifest.clips)) for path in self.paths(number)}
        for path in (self.folder / CLIPS).iterdir():
            if _OURS.fullmatch(path.name) and path.name not in planned:
                path.unlink()

    def _clip(self, number: int) -> Clip:
        clips = self.manifest.clips
        if not 0 <= number < len(clips):
            raise SettingsError(f"there is no clip {number}: the clips are 0 to {len(clips) - 1}")
        return clips[number]

    def _resolved(self, speaker: str, voice: AnyVoice, scheduler: Scheduler | Share) -> AnyVoice:
        """The voice's latents, computed once for all clips; a random one's come from a seed of the speaker's."""
        if self._settings.cvvp_amount > 0 and voice is not None:  # CVVP hears the clips
            return voice
        rand = Philox(manifests.voice_seed(self.manifest.seed, speaker))
        return scheduler.call(lambda engine: resolve(engine, voice, self._settings, rand)[0]).result()

    def _make(self, number: int, scheduler: Scheduler | Share, voices: Mapping[str, AnyVoice]) -> None:
        clip = self.manifest.clips[number]
        passage, voice = clip.passage, voices[clip.passage.speaker]
        try:
            result = retried(
                lambda seed: scheduler.submit(passage.text, voice, self._settings, seed).result(),
                clip.seed,
                self._settings.max_retries,
            )
            sound = result.complete and all(report.ok for report in result.reports)
            for take, path in enumerate(self.paths(number)):
                comment = result.made_with(take) + ("" if sound else f"; {DOUBTFUL}")
                write_wav(path, result.wavs[take], comment=comment)
        except TortoiseError as error:
            raise type(error)(f"clip {number} ({passage.text[:40]!r}): {error}") from error

    def _verify(self) -> None:
        """Raise an OutputError for a clip that is not what was made."""
        for number, clip in enumerate(self.manifest.clips):
            for path, digest in zip(self.paths(number), clip.sha256, strict=False):
                if path.is_file() and file_sha256(path) != digest:
                    raise OutputError(
                        f"{path} was changed or is damaged: remove it to have clip {number} made again"
                    )

    def _note(self) -> None:
        """What is to be known of the clips that are there."""
        for number, clip in enumerate(self.manifest.clips):
            paths = self.paths(number)
            if not clip.sha256 and all(path.is_file() for path in paths):
                clip.sha256 = [file_sha256(path) for path in paths]
                facts = [_facts(path) for path in paths]
                clip.seconds = [seconds for seconds, _ in facts]
                clip.sound = not any(doubtful for _, doubtful in facts)


def _facts(path: Path) -> tuple[float, bool]:
    """Seconds of a clip, and whether it is doubtful."""
    import soundfile

    with soundfile.SoundFile(path) as file:
        return round(file.frames / SAMPLE_RATE, 3), DOUBTFUL in file.comment

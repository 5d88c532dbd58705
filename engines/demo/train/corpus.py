"""The training sentences: WordNet's examples and definitions, and patterns of our own filled with words and numbers.

Everything is drawn in a fixed order from one seed, so the same WordNet gives the same corpus. Sentences of the
held-out lists (benchmarks/sentences) are left out.
"""

from __future__ import annotations

import gzip
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tortoise_rt.text import clean_english

TEXTS = Path(__file__).parent / "texts"
HELD_OUT = Path(__file__).parents[3] / "benchmarks" / "sentences"
PARTS = ("noun", "verb", "adj", "adv")

# How many sentences of each kind, and the words each may have.
QUOTAS = {
    "examples": (30000, 2, 18),
    "definitions": (8000, 4, 16),
    "everyday": (9000, 1, 14),
    "words": (13000, 3, 14),
    "long": (6000, 11, 22),
    "numbers": (4000, 2, 22),
}
LONGEST_TEXT = 130  # characters
_PLAIN = re.compile(r"[A-Za-z ,.'?!;:-]+$")
_INITIALS = re.compile(r"[A-Z]{2}|\.\s*\.|\b[A-Z]\.")


def tidy(sentence: str) -> str:
    """One space between words, a capital first, a full stop last."""
    sentence = re.sub(r"\s+", " ", sentence).strip(" ,;:-")
    sentence = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)
    sentence = sentence[:1].upper() + sentence[1:]
    return sentence if sentence[-1:] in ".?!" else sentence + "."


def key(sentence: str) -> str:
    """What makes two sentences the same: their letters."""
    return " ".join(re.sub(r"[^a-z ]", " ", clean_english(sentence).lower()).split())


def speakable(sentence: str, shortest: int, longest: int) -> bool:
    words = len(sentence.split())
    return (
        shortest <= words <= longest
        and len(sentence) <= LONGEST_TEXT
        and _PLAIN.match(sentence) is not None
        and _INITIALS.search(sentence) is None
    )


class WordNet:
    """Glosses and counted words of a WordNet 3 dictionary folder (Debian: wordnet-base, /usr/share/wordnet)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "data.noun").is_file():
            raise FileNotFoundError(
                f"{folder} has no data.noun; install WordNet (Debian: apt install wordnet-base)"
            )

    def glosses(self) -> Iterator[str]:
        for part in PARTS:
            for line in (self.folder / f"data.{part}").read_text("latin-1").splitlines():
                if not line.startswith(" ") and "|" in line:
                    yield line.split("|", 1)[1].strip()

    def examples(self) -> Iterator[str]:
        for gloss in self.glosses():
            for quoted in re.findall(r'"([^"]+)"', gloss):
                text = quoted.split("--")[0].strip("`' ()")
                if re.search("[a-z]", text):
                    yield tidy(text)

    def definitions(self) -> Iterator[str]:
        for gloss in self.glosses():
            for piece in gloss.split('"')[0].split(";"):
                text = re.sub(r"\([^)]*\)", " ", piece).strip("`' :;,")
                if re.search("[a-z]", text):
                    yield tidy(text)

    def words(self, part: str) -> list[str]:
        """Words of one part of speech (n, v, a, r) that occur in WordNet's tagged texts, most frequent first."""
        classes = {"n": "1", "v": "2", "a": "35", "r": "4"}[part]
        counts: Counter[str] = Counter()
        for line in (self.folder / "cntlist.rev").read_text("latin-1").splitlines():
            sense, _, count = line.split()
            word, rest = sense.split("%")
            if rest[0] in classes and re.fullmatch(r"[a-z]{2,14}", word):
                counts[word] += int(count)
        return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]

    def irregular(self, kind: str) -> dict[str, list[str]]:
        """Base word to its irregular forms (noun: plurals; verb: past forms and participles)."""
        forms: dict[str, list[str]] = {}
        for line in (self.folder / f"{kind}.exc").read_text("latin-1").splitlines():
            form, base = line.split()[:2]
            if form.isalpha() and base.isalpha():
                forms.setdefault(base, []).append(form)
        return forms

    def past(self) -> list[str]:
        """Past forms and participles of the counted verbs."""
        irregular = self.irregular("verb")
        forms: list[str] = []
        for verb in self.words("v"):
            other = [form for form in irregular.get(verb, []) if not form.endswith("ing")]
            forms += other or [re.sub(r"(?<=[^aeiou])y$", "i", verb).removesuffix("e") + "ed"]
        return forms

    def plurals(self) -> list[str]:
        irregular = self.irregular("noun")
        return [
            irregular.get(
                noun, [re.sub(r"(?<=[^aeiou])y$", "ie", re.sub(r"(s|x|z|ch|sh)$", r"\1e", noun)) + "s"]
            )[0]
            for noun in self.words("n")
        ]

    def things(self) -> list[str]:
        """Short names of concrete things (bodies, food, tools, animals, plants, stuff), counted or not."""
        names = set()
        for line in (self.folder / "data.noun").read_text("latin-1").splitlines():
            fields = line.split(" ", 5)
            if (
                fields[0]
                and fields[1] in ("05", "06", "08", "13", "20", "27")
                and re.fullmatch(r"[a-z]{3,7}", fields[4])
            ):
                names.add(fields[4])
        return sorted(names)


def read_lists() -> dict[str, list[str]]:
    lists = {}
    for line in _lines("words.txt"):
        name, words = line.split(":", 1)
        lists[name] = [word.strip() for word in words.split("|")]
    return lists


def read_patterns() -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for line in _lines("patterns.txt"):
        if line.startswith("["):
            patterns = sections.setdefault(line.strip("[]"), [])
        else:
            patterns.append(line)
    return sections


def _lines(name: str) -> list[str]:
    lines = (TEXTS / name).read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _numbers(rng: random.Random) -> dict[str, Callable[[], str]]:
    return {
        "digit": lambda: str(rng.randrange(10)),
        "tens": lambda: str(rng.randrange(10, 100)),
        "hundreds": lambda: str(rng.randrange(100, 1000)),
        "thousands": lambda: f"{rng.choice((rng.randrange(1, 10), rng.randrange(10, 900))) * 1000 + rng.choice((0, rng.randrange(1000))):,}",
        "year": lambda: str(rng.choice((rng.randrange(1500, 2000), rng.randrange(1900, 2040)))),
        "hour": lambda: str(rng.randrange(1, 13)),
        "minute": lambda: str(rng.choice((15, 30, 45, rng.randrange(10, 60)))),
        "money": lambda: rng.choice((f"${rng.randrange(1, 100)}", f"${rng.randrange(1, 60)}.{rng.randrange(5, 100):02}")),
    }  # fmt: skip


def _cycle(words: list[str], rng: random.Random) -> Callable[[], str]:
    """Each word in turn, in a new order every round; the frequent third comes twice a round."""
    queue: list[str] = []

    def draw() -> str:
        if not queue:
            queue.extend(words + words[: len(words) // 3])
            rng.shuffle(queue)
        return queue.pop()

    return draw


class Patterns:
    """Fills sentence patterns."""

    def __init__(self, wordnet: WordNet, rng: random.Random) -> None:
        self.rng = rng
        self.sections = read_patterns()
        self.draw: dict[str, Callable[[], str]] = dict(_numbers(rng))
        for name, words in read_lists().items():
            self.draw[name] = lambda words=words: rng.choice(words)  # type: ignore[misc]
        for name, part in (("noun", "n"), ("verb", "v"), ("adjective", "a"), ("adverb", "r")):
            self.draw[f"any_{name}"] = _cycle(wordnet.words(part), rng)
        for name, words in (
            ("past", wordnet.past()),
            ("plural", wordnet.plurals()),
            ("thing", wordnet.things()),
        ):
            self.draw[f"any_{name}"] = _cycle(words, rng)

    def sentences(self, section: str) -> Iterator[str]:
        while True:
            pattern = self.rng.choice(self.sections[section])
            filled = re.sub(r"\{(\w+)\}", lambda slot: self.draw[slot.group(1)](), pattern)
            # said as the text cleaner says it; the corpus itself holds no digits
            filled = clean_english(filled) if re.search(r"[0-9]", filled) else filled
            yield tidy(re.sub(r"(?<=[.?!] )([a-z])", lambda first: first.group(1).upper(), filled))


def covering(sentences: list[str], count: int, seen: Counter[str], enough: int = 8) -> list[str]:
    """The first `count` of the sentences that hold a word seen fewer than `enough` times so far."""
    chosen = []
    for sentence in sentences:
        words = key(sentence).split()
        if any(seen[word] < enough and len(word) > 2 for word in words):
            chosen.append(sentence)
            seen.update(words)
            if len(chosen) == count:
                break
    return chosen


def build(wordnet: Path, seed: int = 7, fraction: float = 1.0) -> list[tuple[str, str]]:
    """The corpus as (kind, sentence), shuffled; `fraction` < 1 makes a smaller one of the same mixture."""
    rng = random.Random(seed)
    source, patterns = WordNet(wordnet), None
    taken = {
        key(line) for path in sorted(HELD_OUT.glob("*.txt")) for line in path.read_text("utf-8").splitlines()
    }
    seen: Counter[str] = Counter()
    corpus: list[tuple[str, str]] = []

    def add(kind: str, sentences: Iterable[str]) -> None:
        for sentence in sentences:
            seen.update(key(sentence).split())
            corpus.append((kind, sentence))

    def fresh(sentences: Iterable[str], kind: str, count: int | None = None) -> list[str]:
        found = []
        for sentence in sentences:
            letters = key(sentence)
            if letters not in taken and speakable(sentence, *QUOTAS[kind][1:]):
                taken.add(letters)
                found.append(sentence)
                if count is not None and len(found) == count:
                    break
        return found

    patterns = Patterns(source, rng)
    for kind, (quota, _, _) in QUOTAS.items():
        count = math.ceil(quota * fraction)
        if kind == "examples":
            candidates = fresh(source.examples(), kind)
            rng.shuffle(candidates)
            add(kind, candidates[:count])
        elif kind == "definitions":
            candidates = fresh(source.definitions(), kind)
            rng.shuffle(candidates)
            for sentence in covering(candidates, count, seen):
                corpus.append((kind, sentence))
        else:
            add(kind, fresh(patterns.sentences(kind), kind, count))
    rng.shuffle(corpus)
    return corpus


def write(corpus: list[tuple[str, str]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{kind}\t{sentence}\n" for kind, sentence in corpus)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def read(path: Path) -> list[tuple[str, str]]:
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return [(kind, sentence) for kind, sentence in (line.split("\t") for line in lines)]

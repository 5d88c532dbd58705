"""Text to token ids as the models were trained on them, and the splitting of long text.

The cleaning and its order are those of the reference implementation. Where that says something plainly wrong,
this does not:

- an amount after "£" or "€" is said in that currency; "$.50", "$,500" and a lone "£" are said as well;
- one decimal of a currency is tens of its hundredths ("$2.5": fifty cents), more than two are a decimal
  number, and a scale stays with its number ("$2.5 million": two point five million dollars);
- zeros after a decimal point are said ("0.05");
- numbers of more than 36 digits are said digit by digit, and lists of numbers ("1,2,3") are no single number;
- decades have their plural ("the 1990s"), other currencies their names ("¥500");
- a fraction sign is kept apart from the number before it ("1½"), words from the picture between them;
- an abbreviation is none within an address ("example.co.uk"), and stands apart from what follows ("Dr.Smith");
- and the forms of :mod:`tortoise_rt.written`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from .errors import TextError
from .number_words import CURRENCIES, MONEY_SIGN, expand_numbers
from .spec import STOP_TEXT
from .written import respell

_NON_ASCII = re.compile(r"[^\x00-\x7f]")
_SPACES = re.compile(r"\s+")
_SPACE_TOKEN, _STOP_TOKEN, _UNKNOWN_TOKEN = "[SPACE]", "[STOP]", "[UNK]"

# Where text-unidecode (Text::Unidecode of 2001) and its later descendants differ, for what people type: signs, kana, Hebrew.
# Currency signs survive to be said with their amounts, degrees and cents to be said as words.
_TRANSLITERATIONS = {
    **{sign: sign for sign in {*CURRENCIES, "¢", "°"}},
    "™": "(tm)",
    "℠": "(sm)",
    "№": "No.",
    "−": "-",  # minus sign
    "≤": "<=",
    "≥": ">=",
    "×": " x ",
    "÷": " divided by ",
    "±": " plus or minus ",
    **dict.fromkeys("しシ", "shi"),
    **dict.fromkeys("ちチ", "chi"),
    **dict.fromkeys("つっツッ", "tsu"),
    "ー": "-",
    **dict(zip("אחק־", "ahk-", strict=True)),
}
_MONEY_RANGE = re.compile(rf"({MONEY_SIGN})([0-9][0-9.,]*)[–-](?=[0-9])")
_EN_DASH_RANGE = re.compile(rf"(?<=[0-9])–(?={MONEY_SIGN}?[0-9])")
_PICTURES = re.compile(r"(?<=[^\W_])[\u2600-\u2775\u2794-\u27bf\U0001f300-\U0001faff\ufe0f\u200d]+(?=[^\W_])")
_LATIN_NAME = re.compile(r"(?:NEGATIVE \w+ )?LATIN (?:\w+ )?LETTER (?:\w+ )*([A-Z]{1,2})(?: WITH .+)?")

# Replaced in this order. A letter or digit right before, or no full stop, and it is another word.
_ABBREVIATIONS = tuple(
    (re.compile(rf"(?<![/@])\b{short}\.(?=([a-z])?)"), word)
    for short, word in (
        ("mrs", "misess"),  # the spelling of the training text
        ("mr", "mister"),
        ("dr", "doctor"),
        ("st", "saint"),
        ("co", "company"),
        ("jr", "junior"),
        ("maj", "major"),
        ("gen", "general"),
        ("drs", "doctors"),
        ("rev", "reverend"),
        ("lt", "lieutenant"),
        ("hon", "honorable"),
        ("sgt", "sergeant"),
        ("capt", "captain"),
        ("esq", "esquire"),
        ("ltd", "limited"),
        ("col", "colonel"),
        ("ft", "fort"),
    )
)

#: signs that stand alone
_LONE_SIGNS = {sign: many for sign, (_, many, _, _) in CURRENCIES.items() if sign != "$"} | {
    "€": "eur",  # as transliteration has it
    "¢": "cents",
}


@functools.lru_cache(maxsize=4096)
def _transliterate_character(character: str) -> str:
    """ASCII (or a currency sign) for one character; "" when there is none, e.g. for emoji."""
    from text_unidecode import unidecode

    if character in _TRANSLITERATIONS:
        return _TRANSLITERATIONS[character]
    ascii_text: str = unidecode(character)
    if unicodedata.category(character) == "No" and "/" in ascii_text:
        return " " + ascii_text.strip()
    if ascii_text and not ascii_text.startswith("[?]"):  # the table's mark for "unknown"
        return ascii_text
    # The table knows no styled letters and numbers (mathematical, circled, squared); Unicode says what they stand for.
    plain = unicodedata.normalize("NFKC", character)
    if plain != character:
        return "".join(map(_transliterate_or_keep, plain))
    if (value := unicodedata.numeric(character, None)) is not None and value % 1 == 0:
        return str(int(value))
    named = _LATIN_NAME.fullmatch(unicodedata.name(character, ""))
    return named[1].lower() if named else ""


def _transliterate_or_keep(character: str) -> str:
    return character if character.isascii() else _transliterate_character(character)


def transliterate(text: str) -> str:
    """``text`` in ASCII, apart from signs that are said later; ranges ("10–20", "$5-10") have a "to".

    What has no transliteration vanishes.
    """
    text = _EN_DASH_RANGE.sub(" to ", _MONEY_RANGE.sub(r"\2 to \1", text))
    text = _PICTURES.sub(" ", text)
    return _NON_ASCII.sub(lambda m: _transliterate_character(m[0]), text)


def _expand(word: str, abbreviation: re.Match[str]) -> str:
    if not abbreviation[1]:
        return word
    return abbreviation[0] if word == "company" else word + " "  # example.co.uk, Dr.Smith


def clean_english(text: str) -> str:
    """``text`` as the models read it: ASCII, lower case, numbers and abbreviations in words, no double quotes."""
    text = expand_numbers(respell(transliterate(text)).lower())
    for sign, name in _LONE_SIGNS.items():
        text = text.replace(sign, name)
    for pattern, word in _ABBREVIATIONS:
        text = pattern.sub(functools.partial(_expand, word), text)
    return _SPACES.sub(" ", text).replace('"', "")


def clean_basic(text: str) -> str:
    """``text`` in lower case with runs of whitespace as one space; unpaired surrogates are dropped."""
    return _SPACES.sub(" ", text.lower()).encode("utf-8", "ignore").decode("utf-8")


def find_reference_tokenizer() -> Path | None:
    """The tokenizer.json of the tortoise-tts package where that is installed (it is not imported), else None."""
    try:
        spec = importlib.util.find_spec("tortoise")
    except (ImportError, ValueError):  # ValueError: a module of that name without a spec
        return None
    folders = (spec.submodule_search_locations if spec else None) or ()
    paths = (Path(folder) / "data" / "tokenizer.json" for folder in folders)
    return next((path for path in paths if path.is_file()), None)


class Tokenizer:
    """The byte-pair tokenizer in a ``tokenizer.json``.

    ``basic``: clean with :func:`clean_basic` instead of :func:`clean_english` (for vocabularies of other languages).
    Raises TextError when the file is missing or is not a tokenizer of this family.
    """

    def __init__(self, path: str | Path, basic: bool = False) -> None:
        import tokenizers

        if not isinstance(path, (str, os.PathLike)):
            raise TextError(f"a tokenizer is named by a path, not by {type(path).__name__}")
        self.path = Path(path)
        self.clean: Callable[[str], str] = clean_basic if basic else clean_english
        remedy = "put the tokenizer.json of the tortoise-tts package (its data folder) beside the checkpoints"
        if not self.path.is_file():
            raise TextError(f"there is no tokenizer at {self.path}: {remedy}")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(self.path))
        except Exception as error:  # the library raises bare Exception
            raise TextError(f"{self.path} is not a tokenizer ({error}): {remedy}") from error
        if (
            self._tokenizer.token_to_id(_STOP_TOKEN) != STOP_TEXT
            or self._tokenizer.token_to_id(_SPACE_TOKEN) is None
        ):
            raise TextError(
                f"{self.path} is a tokenizer of another model: it needs the token {_STOP_TOKEN} with id {STOP_TEXT} "
                f"and the token {_SPACE_TOKEN}; {remedy}"
            )

    def __len__(self) -> int:
        """Entries of the vocabulary."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of the cleaned text; [] when nothing is left of it. Unknown characters become the unknown token."""
        if not isinstance(text, str):
            raise TextError(f"text must be a string, not {type(text).__name__}")
        return self._tokenizer.encode(self.clean(text).replace(" ", _SPACE_TOKEN)).ids

    def pieces(self, text: str) -> list[tuple[int, str, bool]]:
        """(id, what it stands for, whether the vocabulary knows it) of each token of the cleaned text."""
        cleaned = self.clean(text).replace(" ", _SPACE_TOKEN)
        made = self._tokenizer.encode(cleaned)
        known = [token != _UNKNOWN_TOKEN for token in made.tokens]
        spelt = [
            token if there else cleaned[first:last]
            for token, there, (first, last) in zip(made.tokens, known, made.offsets, strict=True)
        ]
        return list(zip(made.ids, spelt, known, strict=True))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, without stop and unknown tokens. Raises TextError for ids outside the vocabulary."""
        ids = [int(i) for i in ids]
        bad = [i for i in ids if not 0 <= i < len(self)]
        if bad:
            raise TextError(
                f"id {bad[0]} is outside the vocabulary of {len(self)} entries (ids 0 to {len(self) - 1})"
            )
        text = self._tokenizer.decode(ids, skip_special_tokens=False).replace(" ", "")
        return text.replace(_SPACE_TOKEN, " ").replace(_STOP_TOKEN, "").replace(_UNKNOWN_TOKEN, "")


def split_and_recombine_text(text: str, desired_length: int = 200, max_length: int = 300) -> list[str]:
    """Pieces of ``text`` of about ``desired_length`` characters, at most ``max_length``, split between sentences.

    A sentence longer than ``max_length`` is split between words, a longer word at ``desired_length``. Quotations
    stay whole when they fit. Pieces of punctuation alone are dropped; nothing else is lost.
    """
    if not 1 <= desired_length <= max_length:
        raise TextError(f"desired_length is {desired_length}; it must be from 1 to max_length ({max_length})")
    text = re.sub(r"[“”]", '"', re.sub(r"\s+", " ", text))
    pieces = [piece.strip() for piece in _split(text, desired_length, max_length)]
    return [piece for piece in pieces if piece.strip(" .,;:!?")]


def _split(text: str, desired_length: int, max_length: int) -> list[str]:
    """The pieces with all their characters, in order. The scan's decisions are those of the reference."""
    end = len(text) - 1
    pieces: list[str] = []
    boundaries: list[int] = []  # ends of sentences in the current piece
    start, position, quoted = 0, -1, False  # the current piece is text[start : position + 1]

    def ahead(distance: int) -> str:
        """The character ``distance`` ahead; "" from the last one on, which so counts as a boundary's companion."""
        return text[position + distance] if position + distance < end else ""

    def forward() -> None:
        nonlocal position, quoted
        position += 1
        quoted ^= text[position] == '"'

    def back() -> None:
        # The quote that toggles is the one arrived at, not the one left: pieces are cut as the reference cuts them.
        nonlocal position, quoted
        position -= 1
        quoted ^= text[position] == '"'

    def commit() -> None:
        nonlocal start
        pieces.append(text[start : position + 1])
        boundaries.clear()
        start = position + 1

    while position < end:
        forward()
        if position + 1 - start >= max_length:
            if boundaries and position + 1 - start > desired_length / 2:
                for _ in range(position - boundaries[-1]):
                    back()
            else:
                while text[position] not in "!?. " and position > 0 and position + 1 - start > desired_length:
                    back()
            commit()
        elif not quoted and (text[position] in "!?" or (text[position] == "." and ahead(1) in " ")):
            while position < end and position + 1 - start < max_length and ahead(1) in "!?.":
                forward()
            boundaries.append(position)
            if position + 1 - start >= desired_length:
                commit()
        elif quoted and ahead(1) == '"' and ahead(2) in " ":
            forward()
            forward()
            boundaries.append(position)
    pieces.append(text[start : position + 1])
    return pieces

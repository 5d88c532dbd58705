"""Written forms that the reference's cleaning says wrongly, spelt so that it says them right.

Only what is plainly wrong English there is here: times and dates with zeros, negative numbers, ranges, telephone
numbers, streets, Roman numerals, degrees, and letters that run into a number. What can be taken either way stays as
the models learned it. Each pattern takes time linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .number_words import MONEY_SIGN

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_AMOUNT_SCALES = {"k": "thousand", "m": "million", "b": "billion", "t": "trillion"}

#: what a Roman numeral counts when it stands behind one of these, and what it orders
_COUNTED = "Chapter|Part|Book|Volume|Act|Scene|Section|Article|Appendix|World War|Super Bowl"
_ORDERED = (
    "Alexander|Benedict|Catherine|Charles|Clement|Edward|Elizabeth|Francis|Frederick|George|Gregory|Henry|Innocent|"
    "Ivan|James|John|John Paul|Leo|Louis|Mary|Napoleon|Nicholas|Paul|Peter|Philip|Pius|Richard|Urban|William"
)
_ROMAN = re.compile(r"(X{0,3})(IX|IV|V?I{0,3})")
_ONES = {"": 0, "I": 1, "II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9}

_UNITS = (
    "am|pm|[ap]\\.m|km|cm|mm|kg|mg|lbs?|oz|ft|mph|kph|kmh|[kmgt]b|[kmg]?hz|min|hrs?|sec|ms|mi|kw|mw|[a-rt-z]"
)


def _roman(numeral: str) -> int | None:
    """1 to 39 for a Roman numeral in its usual form, else None."""
    match = _ROMAN.fullmatch(numeral)
    return 10 * len(match[1]) + _ONES[match[2]] if match and numeral else None


def _ordinal(number: int) -> str:
    """21 -> "21st"."""
    tail = number % 100
    return f"{number}{'th' if 10 < tail < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(tail % 10, 'th')}"


def _say_time(match: re.Match[str]) -> str:
    """10:05 -> "10:oh 5", a full hour without its zeros; "pm" stands apart."""
    hour, minute, half = match.groups(default="")
    half = half and f" {half.strip()}"
    if minute == "00":
        return hour + (half or (" o'clock" if int(hour) < 13 else " hundred"))
    return f"{hour}:{'oh ' if minute[0] == '0' else ''}{int(minute)}{half}"


def _say_telephone(match: re.Match[str]) -> str:
    return ", ".join(" ".join(part) for part in match.groups() if part)


def _say_date(match: re.Match[str]) -> str:
    return f"{_MONTHS[int(match[2]) - 1]} {_ordinal(int(match[3]))}, {match[1]}"


def _say_feet(match: re.Match[str]) -> str:
    ends = not match.string[match.end() :].strip() or re.match(r"\s+[A-Z]", match.string[match.end() :][:40])
    return f"{match[1]} {'foot' if match[1] == '1' else 'feet'}{'.' if ends else ''}"


def _say_counted(match: re.Match[str]) -> str:
    number = _roman(match[2])
    return match[0] if number is None else f"{match[1]} {number}"


def _say_ordered(match: re.Match[str]) -> str:
    number = _roman(match[2])
    return match[0] if number is None else f"{match[1]} the {_ordinal(number)}"


def _say_road(match: re.Match[str]) -> str:
    ends = not match.string[match.end() : match.end() + 40].strip()
    return f"{match[1]} {'Street' if match[2] == 'St' else 'Drive'}{'.' if ends else ''}"


Say = str | Callable[[re.Match[str]], str]

#: (what is written, how it is respelt), in order
_RULES: tuple[tuple[re.Pattern[str], Say], ...] = tuple(
    (re.compile(pattern), say)
    for pattern, say in (
        # 2020-01-15
        (r"(?<![0-9-])([12][0-9]{3})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])(?![0-9-])", _say_date),
        # 555-123-4567, (555) 123-4567, +1-800-555-0199
        (
            r"(?<![0-9.-])(?:\+?(1)[ .-])?\(?([2-9][0-9]{2})(?:\) ?|[ .-])([0-9]{3})[.-]([0-9]{4})(?![0-9-])",
            _say_telephone,
        ),
        (
            r"(?<![0-9:.,])([01]?[0-9]|2[0-3]):([0-5][0-9])(?!:?[0-9])( ?[AaPp]\.?[Mm]\b)?",
            _say_time,
        ),
        # 1990-1995, 1st-3rd
        (r"(?<![0-9-])((?:1[0-9]|20)[0-9]{2})-(?=(?:1[0-9]|20)[0-9]{2}(?![0-9-]))", r"\1 to "),
        (r"(?<=[0-9])(st|nd|rd|th)-(?=[0-9]{1,9}(?:st|nd|rd|th)\b)", r"\1 to "),
        # -5, (-7), -$5; not 3 -2
        (rf"(?:(?<=^)|(?<=[\s(\[=<>,:]))(?<![0-9]\s)-(?={MONEY_SIGN}?\.?[0-9])", "minus "),
        (rf"(?<=[A-Za-z0-9.,°£€¥¢])(?={MONEY_SIGN}[0-9.,])", " "),  # US$5; 2$5 is not 25
        # $3.5M
        (
            rf"({MONEY_SIGN}[0-9][0-9.,]*)(?:([kKmMbBtT])|([mMbBtT])[nN])(?![A-Za-z0-9])",
            lambda m: f"{m[1]} {_AMOUNT_SCALES[(m[2] or m[3]).lower()]}",
        ),
        (r"(?<=[0-9]) ?¢", " cents"),
        (r" ?°(?: ?C\b)", " degrees celsius"),
        (r" ?°(?: ?F\b)", " degrees fahrenheit"),
        (r" ?°(?=[A-Za-z0-9])", " degrees "),
        (r" ?°", " degrees"),
        # 5'10", 6 ft.
        (r"(?<![0-9])([0-9]{1,2})'([0-9]{1,2})\"(?=[^\s.,:;!?)\]]|[.,:][0-9])", r"\1 foot \2 "),
        (r"(?<![0-9])([0-9]{1,2})'([0-9]{1,2})\"", r"\1 foot \2"),
        (r"(?<![0-9.,])([0-9][0-9.,]*) ?ft\.", _say_feet),
        # 3pm, 5km, 3D; H2O
        (rf"(?i)(?<=[0-9])(?=(?:{_UNITS})(?![a-z0-9_]))", " "),
        (r"(?<![A-Za-z0-9_])([A-Za-z])(?=[0-9])", r"\1 "),
        # No. 5; lower case may be the end of a sentence
        (r"\bNo(s?)\. *(?=[0-9])", r"Number\1 "),
        # 12 Elm Dr., 5th St., Main St. where no name follows
        (r"(?<![0-9])([0-9]{1,6}(?: [A-Z][a-z]+){1,3}) (St|Dr)\.", _say_road),
        (r"(?:(?<=[0-9])|\b)((?:st|nd|rd|th)|[A-Z][a-z]+) (St)\.(?! ?[A-Z0-9])", _say_road),
        (rf"\b({_COUNTED}) ([IVX]{{2,7}}|[VX])\b", _say_counted),
        (r"\b(Phase|Stage|Level|Type) ([IVX]{2,7})\b", _say_counted),
        (r"\b(World War) (I)\b", _say_counted),
        (rf"\b({_COUNTED}) (I)\b(?!['’]| [a-z])", _say_counted),
        (rf"\b({_ORDERED}) ([IVX]{{2,7}}\b|V\b(?!\.? [A-Z]))", _say_ordered),
    )
)


def respell(text: str) -> str:
    """``text`` (transliterated, in its own case) with the forms above spelt out; numbers stay in digits."""
    for pattern, say in _RULES:
        text = pattern.sub(say, text)
    return text

"""English words for the numbers in a text: amounts of money, decimals, ordinals, years and plain integers.

The words are those the models were trained with. Up to 36 digits a number is read as a number; a longer one
is read digit by digit. Every pattern here takes time linear in the text.
"""

from __future__ import annotations

import re

MAX_DIGITS = (
    36  #: digits of the largest number that is read as one ("nine hundred ninety-nine decillion, ...")
)

_SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = [".", ".", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = [
    "",
    "thousand",
    "million",
    "billion",
    "trillion",
    "quadrillion",
    "quintillion",
    "sextillion",
    "septillion",
    "octillion",
    "nonillion",
    "decillion",
]
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}

#: sign -> one of it, many, one hundredth, many hundredths ("" where nobody counts them)
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "¥": ("yen", "yen", "", ""),
    "₩": ("won", "won", "", ""),
    "₽": ("ruble", "rubles", "", ""),
    "₺": ("lira", "lira", "", ""),
    "₿": ("bitcoin", "bitcoins", "", ""),
}
MONEY_SIGN = f"[{''.join(CURRENCIES)}]"  #: as a pattern

_COMMAS = re.compile(r"[0-9][0-9,]+[0-9]")
# 1,234,567, 1,00,000 and 1000,000
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})*,[0-9]{3}|[0-9]+,[0-9]{3}")
_MONEY = re.compile(rf"({MONEY_SIGN})([0-9.,]*[0-9])( (?:thousand|million|billion|trillion)\b)?")
# A run of digits matches from its start or not at all; without the look-behind, a long run takes quadratic time.
_DECIMAL = re.compile(r"(?<![0-9])([0-9]+)\.(0*)([0-9]+)")
_ORDINAL = re.compile(r"(?<![0-9])([0-9]+)(?:st|nd|rd|th)")
_SEVERAL = re.compile(r"(?<![0-9])([0-9]+)s(?![a-z0-9])")
_NUMBER = re.compile(r"[0-9]+")


def _below_hundred(number: int) -> str:
    if number < 20:
        return _SMALL[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f"-{_SMALL[ones]}" if ones else "")


def _below_thousand(number: int, join: str) -> str:
    hundreds, rest = divmod(number, 100)
    if not hundreds:
        return _below_hundred(rest)
    return f"{_SMALL[hundreds]} hundred" + (join + _below_hundred(rest) if rest else "")


def cardinal(number: int, join: str = " ") -> str:
    """``number`` (0 to 10**36 - 1) in words; ``join`` stands before its tens: ``" "`` or ``" and "``."""
    if number < 1000:
        return _below_thousand(number, join)
    groups: list[tuple[int, str]] = []
    rest = number
    for scale in _SCALES:
        rest, group = divmod(rest, 1000)
        groups.append((group, scale))
    words = ", ".join(f"{_below_thousand(g, join)} {s}" for g, s in reversed(groups[1:]) if g)
    last = groups[0][0]
    if not last:
        return words
    return words + (join if last < 100 else ", ") + _below_thousand(last, join)


def ordinal(number: int) -> str:
    """``number`` as an ordinal: 101 -> "one hundred and first"."""
    stem, last = re.fullmatch(r"(.*?)(\w+)", cardinal(number, join=" and ")).groups()  # type: ignore[union-attr]
    if last in _ORDINALS:
        return stem + _ORDINALS[last]
    return stem + (last[:-1] + "ieth" if last.endswith("y") else last + "th")


def year(number: int) -> str:
    """A number from 1001 to 2999 as years are said: 1605 -> "sixteen oh five"."""
    if number == 2000 or 2000 < number < 2010:
        return "two thousand" + (f" {_SMALL[number % 100]}" if number % 100 else "")
    century, rest = divmod(number, 100)
    if not rest:
        return f"{_below_hundred(century)} hundred"
    return f"{_below_hundred(century)} {'oh ' if rest < 10 else ''}{_below_hundred(rest)}"


def _digit_by_digit(digits: str) -> str:
    return " ".join(_SMALL[int(d)] for d in digits)


def _say_number(match: re.Match[str]) -> str:
    digits = match[0].rstrip("s").lstrip("0") or "0"
    if len(digits) > MAX_DIGITS:
        return _digit_by_digit(digits)
    number = int(digits)
    return year(number) if 1000 < number < 3000 else cardinal(number)


def _say_ordinal(match: re.Match[str]) -> str:
    digits = match[1].lstrip("0") or "0"
    return _digit_by_digit(digits) if len(digits) > MAX_DIGITS else ordinal(int(digits))


def _say_several(match: re.Match[str]) -> str:
    """The 1990s and 80s: what is counted there is a number's name."""
    said = _say_number(match)
    return said[:-1] + "ies" if said.endswith("y") else said + ("es" if said.endswith("x") else "s")


def _split_decimal(match: re.Match[str]) -> str:
    """Zeros before other decimals are said one by one ("0.05": zero point zero five), the rest as one number."""
    whole, zeros, rest = match.groups()
    spaced = "0 " * len(zeros) if rest != "0" else ""  # "2.00": two point zero
    return f"{whole} point {spaced}{rest}"


def _join_groups(match: re.Match[str]) -> str:
    """A number's groups without their commas; a list of numbers as a list."""
    grouped = _GROUPED.fullmatch(match[0])
    return match[0].replace(",", "") if grouped else re.sub(r",+", ", ", match[0])


def _split_money(match: re.Match[str]) -> str:
    """An amount as digits and units, for the later passes to say: "$1.50" -> "1 dollar, 50 cents"."""
    sign, amount, scale = match.groups()
    one, many, one_hundredth, hundredths = CURRENCIES[sign]
    whole, *fractions = amount.replace(",", "").split(".")
    if len(fractions) > 1:
        return f"{amount} {many}"
    fraction = fractions[0] if fractions else ""
    whole = whole.lstrip("0")
    if scale or (fraction.strip("0") and (len(fraction) > 2 or not hundredths)):
        return f"{whole or 0}{'.' if fraction else ''}{fraction}{scale or ''} {many}"
    cents = int(fraction[:2].ljust(2, "0"))
    said = [f"{whole} {one if whole == '1' else many}"] if whole else []
    if cents:
        said.append(f"{cents} {one_hundredth if cents == 1 else hundredths}")
    return ", ".join(said) or f"zero {many}"


def expand_numbers(text: str) -> str:
    """Lower-case ``text`` with its ASCII numbers, and the currency signs before them, in words."""
    text = _COMMAS.sub(_join_groups, text)
    text = _MONEY.sub(_split_money, text)
    text = _DECIMAL.sub(_split_decimal, text)
    text = _ORDINAL.sub(_say_ordinal, text)
    text = _SEVERAL.sub(_say_several, text)
    return _NUMBER.sub(_say_number, text)

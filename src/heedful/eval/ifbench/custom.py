"""IFBench's `custom` kinds: single prompts whose whole answer has one form."""

from __future__ import annotations

import csv
import re
import string
import unicodedata
from datetime import date
from itertools import pairwise

from heedful.eval.ifbench.reading import Asked, Kind, lines, sentences, words

NAPOLEON = (date(1769, 8, 15), date(1821, 5, 5))
NUM_AFRICAN_COUNTRIES = 54
CAPITALS = (
    "Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin Amsterdam Warsaw "
    "London Brussels Kyiv Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz Chisinau Bern Ljubljana Zagreb"
)
"""North of 45 degrees, by latitude from the north."""
CHOICE = re.compile(r"\W*[A-Ea-e][.):]\W*\w")


def character_reverse(text: str, asked: Asked) -> bool:
    """The bald eagle, letter by letter from behind."""
    return "bald eagle"[::-1] in text.lower()


def word_reverse(text: str, asked: Asked) -> bool:
    """One sentence in which the bald eagle stands from behind, word by word."""
    return len(lines(text)) == 1 and re.search(r"\beagle bald\b", " ".join(words(text))) is not None


def csv_city(text: str, asked: Asked) -> bool:
    """The header and 7 rows, parted by commas."""
    return _is_table(_rows(text, ","), ["ID", "Country", "City", "Year", "Count"], 7)


def csv_special_character(text: str, asked: Asked) -> bool:
    """The header and 14 rows, parted by commas; a quoted field holds a special character."""
    rows = _rows(text, ",")
    quoted = re.findall(r'"([^"\n]*)"', text)
    has_special = any(re.search(r"[^\w\s]", field) for field in quoted)
    return has_special and _is_table(rows, ["ProductID", "Category", "Brand", "Price", "Stock"], 14)


def csv_quotes(text: str, asked: Asked) -> bool:
    """The header and 3 rows, parted by tabs, every field in double quotes."""
    fields = [field.strip() for line in lines(text.strip()) for field in line.split("\t")]
    is_quoted = all(len(field) > 1 and field[0] == field[-1] == '"' for field in fields)
    return is_quoted and _is_table(_rows(text, "\t"), ["StudentID", "Subject", "Grade", "Semester", "Score"], 3)


def _rows(text: str, delimiter: str) -> list[list[str]]:
    try:
        rows = list(csv.reader(text.strip().splitlines(), delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        return []
    return [[field.strip() for field in row] for row in rows]


def _is_table(rows: list[list[str]], header: list[str], num_rows: int) -> bool:
    return rows[:1] == [header] and len(rows) == num_rows + 1 and all(len(row) == len(header) for row in rows)


def date_format_list(text: str, asked: Asked) -> bool:
    """Dates of Napoleon's lifetime as YYYY-MM-DD, parted by commas, and nothing else."""
    parts = [part.strip() for part in text.strip().split(",")]
    if not all(re.fullmatch(r"\d{4}-\d\d-\d\d", part) for part in parts):
        return False
    try:
        return all(NAPOLEON[0] <= date.fromisoformat(part) <= NAPOLEON[1] for part in parts)
    except ValueError:
        return False


def european_capitals_sort(text: str, asked: Asked) -> bool:
    """All of these capitals in this order, parted by commas, accents aside."""
    return [part.strip().replace("Kiev", "Kyiv") for part in _plain(text).strip(" .\n").split(",")] == CAPITALS.split()


def mcq_count_length(text: str, asked: Asked) -> bool:
    """Four questions that begin with "Question", each longer than the one before, with five choices each."""
    blocks = re.split(r"(?m)^\W*Question\b", text)
    if blocks[0].strip() or len(blocks) != 5:
        return False
    asked_lines = [[line for line in lines(block) if not CHOICE.match(line)] for block in blocks[1:]]
    num_choices = [sum(CHOICE.match(line) is not None for line in lines(block)) for block in blocks[1:]]
    lengths = [len(" ".join(line.strip() for line in found)) for found in asked_lines]
    return num_choices == [5] * 4 and all(before < after for before, after in pairwise(lengths))


def multiples(text: str, asked: Asked) -> bool:
    """The multiples of 7 from 10 to 50, and no other number."""
    return [int(number) for number in re.findall(r"\d+", text)] == list(range(14, 51, 7))


def reverse_newline(text: str, asked: Asked) -> bool:
    """From Zimbabwe on, as many lines as Africa has countries, in reverse alphabetical order, accents aside."""
    found = [_plain(line).strip(string.punctuation + string.digits + " \t").lower() for line in lines(text)]
    start = next((index for index, line in enumerate(found) if line.startswith("zimbabwe")), len(found))
    listed = found[start:]
    return len(listed) >= NUM_AFRICAN_COUNTRIES and listed == sorted(listed, reverse=True)


def sentence_alphabet(text: str, asked: Asked) -> bool:
    """26 sentences, which begin with the letters from a to z."""
    return [(words(one) or [" "])[0][0] for one in sentences(text)] == list(string.ascii_lowercase)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


WHOLE = r".+"
KINDS = {
    "custom:character_reverse": Kind(r"Respond to this query, but.+", character_reverse),
    "custom:csv_city": Kind(WHOLE, csv_city),
    "custom:csv_quotes": Kind(WHOLE, csv_quotes),
    "custom:csv_special_character": Kind(WHOLE, csv_special_character),
    "custom:date_format_list": Kind(r"separated by commas.+", date_format_list),
    "custom:european_capitals_sort": Kind(r"List the capital cities.+", european_capitals_sort),
    "custom:mcq_count_length": Kind(WHOLE, mcq_count_length),
    "custom:multiples": Kind(r"only print multiples of 7\.", multiples),
    "custom:reverse_newline": Kind(r"in reverse alphabetical order, each on a new line\.", reverse_newline),
    "custom:sentence_alphabet": Kind(r"where each sentence's first word.+", sentence_alphabet),
    "custom:word_reverse": Kind(r"Respond to this query, but.+", word_reverse),
}
"""Where form and task cannot be told apart, the whole prompt is the instruction."""

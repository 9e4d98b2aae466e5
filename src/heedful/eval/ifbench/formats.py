"""IFBench's `format` kinds: how an answer is laid out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import regex

from heedful.eval.ifbench.reading import OUTER, Asked, Kind, lines, sentences, word_set, words

EMOJI = r"[\p{Emoji_Presentation}\p{Extended_Pictographic}]"
ENDS_ON_EMOJI = regex.compile(EMOJI + r"[\p{M}\p{Cf}\p{P}\p{Sk}\s]*$")
BEGINS_WITH_EMOJI = regex.compile(r"^[\p{P}\s]*" + EMOJI)
CLOSERS = {")": "(", "]": "[", "}": "{"}
NUM_LEVELS = 5
DOUBLE_OUTSIDE = re.compile(r"""\"[^"']*'[^"']*"[^"']+"[^"']*'[^"']*\"""")
SINGLE_OUTSIDE = re.compile(r"""'[^"']*"[^"']*'[^"']+'[^"']*"[^"']*'""")
TEMPLATE = re.compile(r"\s*My Answer:.*\S.*My Conclusion:.*\S.*Future Outlook:.*\S.*", re.DOTALL)
HEADING = re.compile(r"^\s*(?:#{1,6}\s.*|<h\d>.*?</h\d>)\s*$", re.MULTILINE | re.IGNORECASE)
THESIS = re.compile(r"\s*(?:<i>\s*[^<\s].*?</i>|<em>\s*[^<\s].*?</em>)\W*\w", re.DOTALL | re.IGNORECASE)
MINOR = word_set(
    "a an the and but or nor for so yet as at by down from in into like near of off on onto out over past per than "
    "to up upon via vs with"
)


def emoji(text: str, asked: Asked) -> bool:
    """Every sentence ends on an emoji, which may stand behind its mark."""
    found = sentences(text)
    following = [*found[1:], ""]
    return all(
        ENDS_ON_EMOJI.search(one) or BEGINS_WITH_EMOJI.search(next_)
        for one, next_ in zip(found, following, strict=True)
    )


def line_indent(text: str, asked: Asked) -> bool:
    """At least two lines, each indented more than the line above."""
    indents = [len(line) - len(line.lstrip()) for line in lines(text)]
    return len(indents) > 1 and all(above < below for above, below in pairwise(indents))


def separated_list(text: str, asked: Asked) -> bool:
    """At least two lines that begin with the separator."""
    return sum(line.strip().startswith(asked.text("sep")) for line in lines(text)) >= 2


def newline(text: str, asked: Asked) -> bool:
    """One word a line."""
    return all(len(words(line)) <= 1 for line in lines(text))


def no_bullets_bullets(text: str, asked: Asked) -> bool:
    """At least two sentences that end on a period, and then at least two bullets."""
    found = lines(text)
    bullets = [index for index, line in enumerate(found) if line.strip().startswith("*")]
    before = "\n".join(found[: bullets[0]]) if bullets else ""
    return len(bullets) >= 2 and sum(one.endswith(".") for one in sentences(before)) >= 2


def no_whitespace(text: str, asked: Asked) -> bool:
    """No white space within the answer."""
    return not any(letter.isspace() for letter in text.strip())


def options(text: str, asked: Asked) -> bool:
    """One of the options and nothing else; outer punctuation and case are free, but a letter keeps its bracket."""
    listed = asked.text("options")
    separator = next((one for one in ("/", " or ") if one in listed), ",")
    parted = listed.split(separator)
    if all(re.fullmatch(r"\w\)", one.strip()) for one in parted):
        return text.strip() in {one.strip() for one in parted}
    return text.strip(OUTER).lower() in {one.strip(OUTER).lower() for one in parted}


def output_template(text: str, asked: Asked) -> bool:
    """The template's three labels in order, from the beginning, each with something behind it."""
    return TEMPLATE.fullmatch(text) is not None


def parentheses(text: str, asked: Asked) -> bool:
    """Brackets of any form, five within one another, all closed in order."""
    opened: list[str] = []
    heights: list[int] = []  # of each open bracket: how many levels were closed within it
    for letter in text:
        if letter in CLOSERS.values():
            opened.append(letter)
            heights.append(0)
        elif letter in CLOSERS and opened[-1:] == [CLOSERS[letter]]:
            opened.pop()
            height = heights.pop() + 1
            if height >= NUM_LEVELS:
                return True
            heights[-1:] = [max(height, one) for one in heights[-1:]]
        elif letter in CLOSERS:
            opened, heights = [], []
    return False


def quote_unquote(text: str, asked: Asked) -> bool:
    """Behind every double-quoted phrase, and before the next, stand words that are not quoted."""
    unquoted = re.sub(r"[“”„«»]", '"', text).split('"')[2::2]
    return all(words(part) for part in unquoted)


def quotes(text: str, asked: Asked) -> bool:
    """Quotes three deep, double and single in turn; apostrophes within words are none."""
    plain = re.sub(r"(?<=\w)['’](?=\w)", "", text)
    plain = re.sub(r"[‘’]", "'", re.sub(r"[“”]", '"', plain))
    return DOUBLE_OUTSIDE.search(plain) is not None or SINGLE_OUTSIDE.search(plain) is not None


def sub_bullets(text: str, asked: Asked) -> bool:
    """Bullets `*`, each with at least one sub-bullet `-` below it."""
    marks = "".join(line.strip()[0] for line in lines(text) if line.strip()[0] in "*-")
    return "*" in marks and "**" not in marks and not marks.endswith("*")


def thesis(text: str, asked: Asked) -> bool:
    """Every section (of headings, or the whole) begins with a passage in `<i>` or `<em>`, and goes on behind it."""
    found = list(_sections(text))
    return bool(found) and all(THESIS.match(section) for section in found)


def _sections(text: str) -> Iterator[str]:
    before, *behind = HEADING.split(text)
    if not behind or before.strip():
        yield before
    yield from (section for section in behind if section.strip())


def title_case(text: str, asked: Asked) -> bool:
    """Every word begins with a capital, but for articles, short prepositions and conjunctions within a line."""
    for line in lines(text):
        for index, word in enumerate(re.findall(r"[^\W\d_][\w'’]*", line)):
            if word[0].islower() and (index == 0 or word not in MINOR):
                return False
    return True


KINDS = {
    "format:emoji": Kind(r"Please use an emoji at the end of every sentence\.", emoji),
    "format:line_indent": Kind(r"Create stairs by incrementally indenting each new line\.", line_indent),
    "format:list": Kind(r"Answer with a list of items, instead of bullet points use \S+", separated_list),
    "format:newline": Kind(r"Write each word on a new line\.", newline),
    "format:no_bullets_bullets": Kind(
        r"Your answer must contain at least two sentences ending in a period.+?denoted by \*\.", no_bullets_bullets
    ),
    "format:no_whitespace": Kind(r"The output should not contain any whitespace\.", no_whitespace),
    "format:options": Kind(
        r"Answer with one of the following options: .+?(?:Do not give any explanation\.|maybe\.(?! Do not))", options
    ),
    "format:output_template": Kind(r"Use this exact template for your response:.+?\[outlook\]", output_template),
    "format:parentheses": Kind(r"Nest parentheses \(and \[brackets \{and braces\}\]\).+?levels deep\.", parentheses),
    "format:quote_unquote": Kind(r"Every quoted phrase must be followed by an unquoted explanation\.", quote_unquote),
    "format:quotes": Kind(r"Include quotes within quotes within quotes.+?single quotes\.", quotes),
    "format:sub-bullets": Kind(
        r"Your response must include bullet points denoted by \*.+?each bullet point\.", sub_bullets
    ),
    "format:thesis": Kind(r"Each section must begin with a thesis statement.+?indicate the italics\.", thesis),
    "format:title_case": Kind(r"Write the entire response in title case \(.+?\)\.", title_case),
}

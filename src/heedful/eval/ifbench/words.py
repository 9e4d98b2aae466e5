"""IFBench's `words` kinds: what every word, or a word at a certain place, must be."""

from __future__ import annotations

import re
from itertools import pairwise

from heedful.eval.ifbench.reading import Asked, Kind, lines, sentences, word_tokens, words

CLUSTER = re.compile(r"[bcdfghjklmnpqrstvwxyz]{2}")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NUM_PALINDROMES = 10
PALINDROME_LETTERS = 5
NUM_VOWELS = 3


def alphabet(text: str, asked: Asked) -> bool:
    """Each word begins with the letter behind that of the word before; `a` stands behind `z`."""
    places = [LETTERS.find(word[0]) for word in words(text)]
    return -1 not in places and all((before + 1) % 26 == after for before, after in pairwise(places))


def consonants(text: str, asked: Asked) -> bool:
    """Each word has two consonants side by side; `y` is one."""
    return all(CLUSTER.search(word) for word in words(text))


def keywords_specific_position(text: str, asked: Asked) -> bool:
    """The keyword, in any case, as that word of that sentence."""
    sentence = sentences(text)[asked.number("n") - 1 : asked.number("n")]
    word = word_tokens("".join(sentence))[asked.number("m") - 1 : asked.number("m")]
    return word == [asked.text("keyword").lower()]


def last_first(text: str, asked: Asked) -> bool:
    """Each sentence begins with the last word of the one before."""
    found = [words(one) for one in sentences(text)]
    return all(before and before[-1:] == after[:1] for before, after in pairwise(found))


def no_consecutive(text: str, asked: Asked) -> bool:
    """No word begins with the letter of the word before."""
    found = words(text)
    return all(before[0] != after[0] for before, after in pairwise(found))


def odd_even_syllables(text: str, asked: Asked) -> bool:
    """Odd and even numbers of syllables in turn, as syllapy counts them."""
    import syllapy

    odd = [syllapy.count(word) % 2 for word in words(text)]
    return all(before != after for before, after in pairwise(odd))


def palindrome(text: str, asked: Asked) -> bool:
    """Ten words of five letters or more that read the same backwards."""
    bare = [re.sub(r"[\W_]", "", word) for word in words(text)]
    return sum(word == word[::-1] and len(word) >= PALINDROME_LETTERS for word in bare) >= NUM_PALINDROMES


def paragraph_last_first(text: str, asked: Asked) -> bool:
    """Each line ends on the word that it began with."""
    found = [words(line) for line in lines(text)]
    return all(one[0] == one[-1] for one in found if one)


def prime_lengths(text: str, asked: Asked) -> bool:
    """Only words whose letters are a prime number, marks aside."""
    return all(_is_prime(len(re.sub(r"[\W_]", "", word))) for word in words(text))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


def repeats(text: str, asked: Asked) -> bool:
    """No word more often than so many times."""
    found = words(text)
    return all(found.count(word) <= asked.number("small_n") for word in set(found))


def vowel(text: str, asked: Asked) -> bool:
    """One paragraph, in which at most three of the vowels a, e, i, o, u stand."""
    return len(lines(text)) == 1 and len(set("aeiou") & set(text.lower())) <= NUM_VOWELS


def words_position(text: str, asked: Asked) -> bool:
    """The keyword, in any case, as the second word and as the last but one."""
    found = word_tokens(text)
    return len(found) > 1 and found[1] == found[-2] == asked.text("keyword").lower()


KINDS = {
    "words:alphabet": Kind(r"Each word in your response must start with the next letter.+?after 'Z'\.", alphabet),
    "words:consonants": Kind(
        r"Ensure each word in your response has at least one consonant cluster.+?\)\.", consonants
    ),
    "words:keywords_specific_position": Kind(
        r"Include keyword .+? in the \d+-\w\w sentence, as the \d+-\w\w word of that sentence\.",
        keywords_specific_position,
    ),
    "words:last_first": Kind(r"In your response,? the last word of each sentence must.+?next sentence\.", last_first),
    "words:no_consecutive": Kind(r"No two consecutive words can share the same first letter\.", no_consecutive),
    "words:odd_even_syllables": Kind(
        r"Alternate between words with odd and even numbers of syllables\.", odd_even_syllables
    ),
    "words:palindrome": Kind(r"Include at least 10 single-word palindromes.+?characters long\.", palindrome),
    "words:paragraph_last_first": Kind(
        r"Each paragraph of your response must end with the same word.+?with a newline\.", paragraph_last_first
    ),
    "words:prime_lengths": Kind(r"Use only words with lengths that are prime numbers\.", prime_lengths),
    "words:repeats": Kind(r"The response should not repeat any word more than \d+ times\.", repeats),
    "words:vowel": Kind(r"Write a paragraph using words that contain only three types of vowels\.", vowel),
    "words:words_position": Kind(
        r"The second word in your response and the second to last word.+?word \w+\.", words_position
    ),
}

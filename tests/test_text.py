"""Streams of text: characters whole, stop strings never shown, and the same text as decoding at once."""

import hypothesis.strategies as st
from hypothesis import given, settings

from heedful.text import TextStream


class Bytes:
    """A tokenizer whose tokens are single bytes."""

    def decode(self, ids: list[int], **_: object) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(Bytes(), stop)
    out = []
    for byte in text.encode():
        out.append(stream.push(byte))
        if stream.is_stopped:
            break
    out.append(stream.close())
    return out, stream


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_characters_come_whole(text: str) -> None:
    out, stream = pieces(text)
    assert "".join(out) == stream.text == text
    assert all("�" not in piece for piece in out) or "�" in text


@settings(max_examples=200, deadline=None)
@given(st.text("abé", max_size=30), st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_strings_never_leak(text: str, stop: list[str]) -> None:
    out, stream = pieces(text, tuple(stop))
    hits = [text.find(s) for s in stop if s in text]
    assert "".join(out) == stream.text
    assert not any(s in stream.text for s in stop)
    if hits:
        assert stream.is_stopped
        assert text.startswith(stream.text)
    else:
        assert stream.text == text


def test_half_a_stop_string_is_text_after_all() -> None:
    out, _ = pieces("all done, EN", ("END",))
    assert "".join(out) == "all done, EN"
    assert out[-1] == "EN"


def test_broken_bytes_come_out_at_the_end() -> None:
    stream = TextStream(Bytes())
    assert stream.push(0xF0) == ""
    assert stream.close() == "�"

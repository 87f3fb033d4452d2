import hypothesis.strategies as st
from hypothesis import given, settings

from gemmule.data.sections import cut


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("ab \n\r"), max_size=300), max_size=20), st.integers(8, 100)
)
def test_sections_join_to_the_text_and_keep_their_size(blocks, size):
    sections = list(cut(blocks, size))
    text = "".join(blocks)
    assert "".join(sections) == text
    assert all(len(s) <= size + size // 4 for s in sections)
    assert all(len(s) >= size // 4 for s in sections) or len(sections) == 1
    assert sections == list(cut([text], size))


def test_a_cut_prefers_a_blank_line_then_a_line_end_then_a_space():
    body = "word " * 8
    assert next(cut([f"{body}\n\n{body}\n{body}{body}"], 80)).endswith("\n\n")
    assert next(cut([f"{body}\n{body}{body}{body}"], 80)).endswith("\n")
    assert next(cut([body * 8], 81)).endswith(" ")
    assert len(next(cut(["x" * 500], 80))) == 80

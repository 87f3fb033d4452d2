import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gemmule.data.sections import SECTION_BYTES, cut


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


SCRIPTS = {
    "Chinese": "第一章海上的风很大。船长说：「我们回家吧！」他没有回答，",
    "Japanese": "船長は言った。「もう帰ろう」と。海は静かだった、",
    "Thai": "กัปตันบอกว่าเราควรกลับบ้านกันเถอะน้ำในทะเล",
    "Russian": "Капитан сказал, что пора возвращаться домой. ",
    "Hindi": "कप्तान ने कहा कि घर लौटने का समय हो गया है। ",
    "Korean": "선장은 집으로 돌아갈 시간이라고 말했다. ",
    "emoji": "👩‍👩‍👧🇩🇪🇫🇷👍🏽❤️e\u0301",
    "Burmese": "ကပ္ပတိန်ကအိမ်ပြန်ချိန်တန်ပြီဟုပြောသည်။",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_sections_of_any_script_are_as_large_in_bytes(script):
    text = SCRIPTS[script] * (400_000 // len(SCRIPTS[script].encode()))
    sections = list(cut([text]))
    assert "".join(sections) == text
    sizes = [len(section.encode()) for section in sections]
    assert all(SECTION_BYTES // 4 <= size <= SECTION_BYTES * 5 // 4 for size in sizes)
    assert 5 <= len(sections) <= 12
    blocks = [text[i : i + 999] for i in range(0, len(text), 999)]
    assert list(cut(blocks)) == sections


@pytest.mark.parametrize("script", ["Chinese", "Japanese", "Burmese"])
def test_scripts_without_spaces_are_cut_after_sentences(script):
    *sections, _ = cut([SCRIPTS[script] * 9000])
    assert {section[-1] for section in sections} <= set("。！」။")


@pytest.mark.parametrize("script", ["emoji", "Thai", "Korean"])
@pytest.mark.parametrize("size", range(64, 90))
def test_no_character_is_cut_apart(script, size):
    regex = pytest.importorskip("regex")
    text = SCRIPTS[script].replace(" ", "") * 30
    starts = {match.start() for match in regex.finditer(r"\X", text)}
    at = 0
    for section in cut([text], size):
        assert at in starts
        at += len(section)


def test_192_kb_is_enough_for_three_sections_in_any_script():
    for text in ("x", "é", "ж", "海", "😀", "x海", "xxxé", "e\u0301"):
        whole = text * (3 * SECTION_BYTES // len(text.encode()))
        assert len(list(cut([whole]))) >= 3, text
    half = 3 * SECTION_BYTES // 2
    mixed = "x" * half + "海" * (half // 3)
    assert len(list(cut([mixed]))) >= 3
    assert len(list(cut([mixed[::-1]]))) >= 3


def test_lone_surrogates_do_not_matter():
    text = "\ud800海" * 90_000
    assert "".join(cut([text])) == text

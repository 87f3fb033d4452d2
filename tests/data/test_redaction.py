"""What is removed, what stands in its place, and how much of planted data is found."""

import itertools
import random
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gemmule.data.personal_data import PersonalDataMatch, find
from gemmule.data.personal_data_places import Places
from gemmule.data.planted_personal_data import Planted, plant
from gemmule.data.read_log import ReadLog
from gemmule.data.recipe.redact import KEY, RedactSettings
from gemmule.data.redaction import hidden, redact
from gemmule.data.sources import Document, find_source

pytest.importorskip("stdnum", reason="needs python-stdnum, of the extra eval")
MAIL, CARD = "jane.doe@acme.co.uk", "4111 1111 1111 1111"


def documents(count: int) -> list[str]:
    """Modules of Python's library."""
    stream = itertools.islice(find_source(None).documents(ReadLog()), count)
    return [document.text[:20_000] for document in stream]


@pytest.fixture(scope="module")
def planted() -> list[tuple[str, str, list[Planted]]]:
    """Texts, the same with planted data, and what was planted."""
    return [(text, *plant(text, 7 * n, 30)) for n, text in enumerate(documents(50))]


def of(span: Planted, matches: list[PersonalDataMatch]) -> list[PersonalDataMatch]:
    return [m for m in matches if m.start < span.end and m.end > span.start]


def test_recall_and_precision_on_planted_data(
    planted: list[tuple[str, str, list[Planted]]],
) -> None:
    data, caught, alarms, others = Counter[str](), Counter[str](), Counter[str](), 0
    for before, text, spans in planted:
        matches = find(text)
        others += len(matches) - len(find(before))
        for span in spans:
            hits = of(span, matches)
            others -= len(hits)
            if not span.severity:
                alarms[span.kind] += bool(hits)
                continue
            data[span.kind] += 1
            caught[span.kind] += any(
                (m.kind, m.severity) == (span.kind, span.severity)
                and m.start <= span.start
                and m.end >= span.end
                for m in hits
            )
    assert len(data) == 13
    recall = {kind: caught[kind] / count for kind, count in data.items()}
    # "Call 415 867 5309" without any word of telephones before it would be missed.
    assert {kind for kind, r in recall.items() if r < 1} <= {"telephone number"}
    assert recall["telephone number"] >= 0.9
    assert sum(alarms.values()) / (sum(caught.values()) + sum(alarms.values())) <= 0.01, alarms
    assert others == 0


def test_places_lose_nothing(
    planted: list[tuple[str, str, list[Planted]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking only where data can be finds what trying every pattern everywhere finds."""
    texts = [text for _, text, _ in planted[:12]]
    quick = [find(text) for text in texts]
    assert sum(map(len, quick)) > 300
    monkeypatch.setattr(Places, "windows", lambda self, place: [(0, len(self.text))])
    assert [find(text) for text in texts] == quick


def test_by_severity() -> None:
    text = f"Dr. Jane Doe, {MAIL}, pays with {CARD}."
    result = redact(text, b"key")
    (name,) = [word for word in result.text.split() if word.startswith("<")]
    assert result.text == f"Dr. Jane Doe, {name} pays with ."
    assert name.startswith("<EMAIL_ADDRESS_")
    assert result.counts == {
        "e-mail address, replaced": 1,
        "payment card, removed": 1,
        "person's name, left": 1,
    }
    other = redact(text, b"key", {"high": "count", "medium": "remove", "low": "replace"})
    assert CARD in other.text
    assert other.text.startswith("Dr. <PERSON_NAME_")
    assert other.counts["e-mail address, removed"] == 1


def test_a_private_key_goes_with_its_lines() -> None:
    lines = "\n".join(["MIIEpAIBAAKCAQEA7bq0hd2c3J0lY8x1abcdEFGHabcdEFGH"] * 3)
    block = f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\n-----END RSA PRIVATE KEY-----"
    assert redact(f"a\n{block}\nb", b"key").text == "a\n\nb"
    cut = f"-----BEGIN PRIVATE KEY-----\n{lines}"
    assert redact(f"a\n{cut}\nand so on", b"key").text == "a\n\nand so on"


def test_placeholders_follow_from_value_and_key() -> None:
    def name(text: str, key: bytes = b"key") -> str:
        return redact(text, key).text

    assert name("+44 20 7946 0958") == name("+44-20-79460958")
    assert name(MAIL) == name(MAIL.upper())
    assert len({name(MAIL), name(MAIL, b"other"), name("bob@acme.co.uk")}) == 3


def test_what_a_removal_brings_together_goes_too() -> None:
    result = redact("pay 4111 1111-----BEGIN PRIVATE KEY----- 1111 1111 now", b"key")
    assert result.text == "pay  now"
    assert result.counts == {"private key, removed": 1, "payment card, removed": 1}


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.lists(st.sampled_from(["\n", " ", "", ".", "x", "1", "@"]), max_size=9),
)
def test_the_result_holds_nothing_and_stays(seed: int, between: list[str]) -> None:
    draw = random.Random(seed)
    text, spans = plant("one\ntwo\n", seed, 4)
    pieces = [text[span.start : span.end] for span in spans]
    draw.shuffle(pieces)
    text = "".join(f"{piece}{gap}" for piece, gap in zip(pieces, [*between, *pieces], strict=False))
    once = redact(text, b"key")
    assert {m.severity for m in find(once.text)} <= {"low"}
    again = redact(once.text, b"key")
    assert again.text == once.text
    assert all(what.endswith("left") for what in again.counts)


def test_shown_text_has_shapes_alone() -> None:
    shown = hidden(f"Dr. Jane Doe, {MAIL}, pays with {CARD}.")
    assert shown == "Dr. xxxx xxx, xxxx.xxx@xxxx.xx.xx, pays with 0000 0000 0000 0000."


def test_the_stage(tmp_path) -> None:
    text = f"Write to {MAIL}."
    for settings_ in (RedactSettings(), RedactSettings(key="a fixed key")):
        folder = tmp_path / str(settings_.key)
        settings_.fit(folder)
        stage = settings_.open(folder)
        settings_.fit(folder)  # keeps the key
        again = settings_.open(folder)
        outcome = stage.apply(Document("a#0", text))
        assert outcome.counts == {"e-mail address, replaced": 1}
        assert (outcome, stage.fingerprint) == (
            again.apply(Document("b#1", text)), again.fingerprint,
        )  # fmt: skip
    one, two = RedactSettings(), RedactSettings()
    one.fit(tmp_path / "1")
    two.fit(tmp_path / "2")
    assert (tmp_path / "1" / KEY).read_text() != (tmp_path / "2" / KEY).read_text()
    assert one.open(tmp_path / "1").fingerprint != two.open(tmp_path / "2").fingerprint
    nothing = stage.apply(Document("c#0", CARD))
    assert (nothing.text, nothing.reason) == (None, "nothing but personal data")

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmule.report import values
from gemmule.report.run_files import Document
from gemmule.report.values import Provenance, Value, sentence


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (values.count, 0, "0"),
        (values.count, 950, "950"),
        (values.count, 999_808, "1.00 M"),
        (values.count, 500_000, "500 k"),
        (values.count, 1_524_096, "1.52 M"),
        (values.count, 26_047_480_320, "26.0 G"),
        (values.flops, 1.3e13, "13.0 TFLOP"),
        (values.flops, 12, "12 FLOP"),
        (values.tick, 250_000, "250 k"),
        (values.tick, 0, "0"),
        (values.tick, 3e12, "3 T"),
        (values.exact, 1524096, "1,524,096"),
        (values.exact, 50.0, "50.0"),
        (values.duration, 0.25, "0.25 s"),
        (values.duration, 59.99, "1 min 0 s"),
        (values.duration, 95.4, "1 min 35 s"),
        (values.duration, 3661, "1 h 1 min"),
        (values.watt_hours, 0.0105, "0.0105 Wh"),
        (values.watt_hours, 999.9, "1.00 kWh"),
        (values.watt_hours, 12.345, "12.3 Wh"),
        (values.watt_hours, 1200.0, "1.20 kWh"),
        (values.grams, 0.0, "0 g CO₂e"),
        (values.significant, 42.5210, "42.52"),
        (values.significant, 123456.7, "123,457"),
        (values.loss, 3.7505, "3.751"),
    ],
)
def test_how_values_are_written(form, value, text):
    assert form(value) == text


@given(st.floats(1, 1e20))
def test_a_shortened_number_is_within_half_a_percent(value):
    number, prefix = values.flops(value).removesuffix("FLOP").split(" ")
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
    assert float(number) * scale[prefix] == pytest.approx(value, rel=5.1e-3, abs=0.5)
    assert "e" not in number


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/corpus", "…/corpus"),
        (r"C:\Users\me\corpus", "…/corpus"),
        ("runs/one", "runs/one"),
        ("a / b", "a / b"),
        ("next-token", "next-token"),
    ],
)
def test_an_absolute_path_keeps_only_its_last_part(text, shown):
    assert values.without_folders(text) == shown


def test_each_value_is_kept_once_with_its_source():
    provenance = Provenance()
    document = Document("a/result.json", {"x": {"y": 2.0}, "z": None})
    first = provenance.take(document, "x.y", "y", values.loss)
    assert first == Value("y", 2.0, "2.000", "a/result.json", "x.y")
    assert provenance.take(document, "x.y", "again", values.loss) is first
    missing = provenance.take(document, "z", "z", values.loss)
    assert (missing.text, missing.known) == ("not measured", False)
    assert provenance.take(None, "q", "q", values.loss).file == "no file"
    assert not provenance.difference(first, missing, "d", values.loss).known
    assert not provenance.total([first, missing], "t", values.loss).known
    assert provenance.total([first, first], "t", values.loss).value == 4
    assert len(provenance.values) == 6


def test_sentences_hold_values_and_other_sentences():
    value = Value("y", 2.0, "2.000", "f", "k")
    assert sentence("a {} b {}.", value, ["c ", value]) == ["a ", value, " b ", "c ", value, "."]
    with pytest.raises(ValueError, match="zip"):
        sentence("one {}")

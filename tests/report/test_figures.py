import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmule.report import figures
from gemmule.report.figures import Figure, Ledger, say
from gemmule.report.run_files import Document


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (figures.count, 0, "0"),
        (figures.count, 950, "950"),
        (figures.count, 999_808, "1.00 M"),
        (figures.count, 500_000, "500 k"),
        (figures.count, 1_524_096, "1.52 M"),
        (figures.count, 26_047_480_320, "26.0 G"),
        (figures.flops, 1.3e13, "13.0 TFLOP"),
        (figures.flops, 12, "12 FLOP"),
        (figures.tick, 250_000, "250 k"),
        (figures.tick, 0, "0"),
        (figures.tick, 3e12, "3 T"),
        (figures.exact, 1524096, "1,524,096"),
        (figures.exact, 50.0, "50.0"),
        (figures.duration, 0.25, "0.25 s"),
        (figures.duration, 59.99, "1 min 0 s"),
        (figures.duration, 95.4, "1 min 35 s"),
        (figures.duration, 3661, "1 h 1 min"),
        (figures.watt_hours, 0.0105, "0.0105 Wh"),
        (figures.watt_hours, 999.9, "1.00 kWh"),
        (figures.watt_hours, 12.345, "12.3 Wh"),
        (figures.watt_hours, 1200.0, "1.20 kWh"),
        (figures.grams, 0.0, "0 g CO₂e"),
        (figures.significant, 42.5210, "42.52"),
        (figures.significant, 123456.7, "123,457"),
        (figures.loss, 3.7505, "3.751"),
    ],
)
def test_how_figures_are_written(form, value, text):
    assert form(value) == text


@given(st.floats(1, 1e20))
def test_a_shortened_number_is_within_half_a_percent(value):
    number, prefix = figures.flops(value).removesuffix("FLOP").split(" ")
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
    assert figures.without_folders(text) == shown


def test_the_ledger_remembers_each_figure_once_and_where_it_is_from():
    ledger = Ledger()
    document = Document("a/result.json", {"x": {"y": 2.0}, "z": None})
    first = ledger.take(document, "x.y", "y", figures.loss)
    assert first == Figure("y", 2.0, "2.000", "a/result.json", "x.y")
    assert ledger.take(document, "x.y", "again", figures.loss) is first
    missing = ledger.take(document, "z", "z", figures.loss)
    assert (missing.text, missing.known) == ("not measured", False)
    assert ledger.take(None, "q", "q", figures.loss).file == "no file"
    assert not ledger.difference(first, missing, "d", figures.loss).known
    assert not ledger.total([first, missing], "t", figures.loss).known
    assert ledger.total([first, first], "t", figures.loss).value == 4
    assert len(ledger.figures) == 6


def test_sentences_hold_figures_and_other_sentences():
    figure = Figure("y", 2.0, "2.000", "f", "k")
    assert say("a {} b {}.", figure, ["c ", figure]) == ["a ", figure, " b ", "c ", figure, "."]
    with pytest.raises(ValueError, match="zip"):
        say("one {}")

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmule.errors import ConfigError
from gemmule.train.config import ScheduleConfig
from gemmule.train.schedule import learning_rate_factor


def curve(steps: int, **settings: object) -> list[float]:
    config = ScheduleConfig.parse(settings)
    return [learning_rate_factor(i, steps, config) for i in range(steps)]


def test_wsd() -> None:
    factors = curve(10, warmup=0.2, decay=0.4)
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_cosine() -> None:
    factors = curve(12, name="cosine", warmup=1 / 6, final=0.1)
    assert factors[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert factors[7] == pytest.approx(0.55)  # half way down
    assert factors[-1] == pytest.approx(0.1 + 0.9 * (1 + math.cos(0.9 * math.pi)) / 2)


@given(
    st.sampled_from(["wsd", "cosine"]),
    st.integers(1, 300),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.floats(0, 1),
)
def test_rises_then_never_rises_again(
    name: str, steps: int, warmup: float, decay: float, final: float
) -> None:
    factors = curve(steps, name=name, warmup=warmup, decay=decay, final=final)
    assert all(0 < f <= 1 for f in factors)
    risen = round(warmup * steps)
    assert factors[:risen] == sorted(factors[:risen])
    assert factors[risen:] == sorted(factors[risen:], reverse=True)
    assert all(f >= final - 1e-9 for f in factors[risen:])


def test_a_warmup_and_decay_that_overlap_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^config: warmup 0.6 and decay 0.5 add up"):
        ScheduleConfig.parse({"warmup": 0.6, "decay": 0.5})

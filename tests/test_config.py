from pathlib import Path

import pytest
from pydantic import Field

from gemmule.config import Config, nearest
from gemmule.errors import ConfigError
from gemmule.train.config import DistillConfig, TrainConfig

TRAIN = {"data": "d", "steps": 3}


class Inner(Config):
    rate: float = Field(default=1.0, gt=0)


class Outer(Config):
    name: str = "x"
    inner: Inner = Inner()
    maybe: Inner | None = None


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("stpes", "unknown key 'stpes'; did you mean 'steps'"),
        ("learning_rat", "did you mean 'optimizer.learning_rate'"),
        ("optimizer.learning_rat", "unknown key 'optimizer.learning_rat'; did you mean 'learning_"),
        ("schedule.warmpu", "did you mean 'warmup'"),
        ("xyzzy", "unknown key 'xyzzy'; allowed: device, dtype, compile"),
        ("optimizer.xyzzy", "allowed: name, learning_rate"),
    ],
)
def test_unknown_keys_name_the_nearest(key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.load(None, ["data=d", "steps=3", f"{key}=1"])
    assert hint in str(caught.value)


def test_optional_groups_are_looked_into() -> None:
    with pytest.raises(ConfigError, match=r"'maybe.rtae'; did you mean 'rate'"):
        Outer.parse({"maybe": {"rtae": 1}})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=0", "steps = 0: input should be greater than 0"),
        ("steps=-4", "steps = -4: input should be greater than 0"),
        ("steps=many", "steps = 'many': input should be a valid integer"),
        ("steps=2.5", "steps = 2.5: input should be a valid integer"),
        ("steps=nan", "steps = nan: input should be a finite number"),
        ("seed=-1", "seed = -1"),
        ("seed=99999999999999999999", "seed = 99999999999999999999"),
        ("threads=100000", "threads = 100000: input should be less than or equal to 1024"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate = nan"),
        ("optimizer.learning_rate=inf", "optimizer.learning_rate = inf"),
        ("optimizer.clip=0", "optimizer.clip = 0"),
        ("optimizer.beta2=1", "optimizer.beta2 = 1"),
        ("optimizer.beta1=nan", "optimizer.beta1 = nan"),
        ("optimizer.name=sgd", "optimizer.name = 'sgd': input should be 'muon' or 'adamw'"),
        ("schedule.warmup=nan", "schedule.warmup = nan"),
        ("checkpoint_minutes=nan", "checkpoint_minutes = nan"),
        ("micro_batch_size=3", "is not a multiple of micro_batch_size 3"),
        ("optimizer=3", "optimizer = 3: input should be a valid dictionary"),
        ("device=tpu", "device = 'tpu': input should be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_bad_values_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.load(None, ["data=d", "steps=3", override])
    assert message in str(caught.value)
    assert "{" not in str(caught.value)  # no dump of everything else
    assert "\n" not in str(caught.value)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"seed = -1.*unknown key 'stpes'"):
        TrainConfig.parse({**TRAIN, "seed": -1, "stpes": 3})
    with pytest.raises(ConfigError, match=r"'data' is required.*'steps' is required"):
        TrainConfig.parse({})
    with pytest.raises(ConfigError, match=r"set either teacher \(a model\) or targets"):
        DistillConfig.parse(TRAIN)


@pytest.mark.parametrize("text", ["steps = = 3", "steps", "a = 1\na = 2", "\x00", "[a\n"])
def test_a_file_that_is_no_toml(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"a.toml is not a readable TOML file"):
        TrainConfig.load(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config file at"):
        TrainConfig.load(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        TrainConfig.load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'data = "caf\xe9"')
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        TrainConfig.load(tmp_path / "latin.toml")


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('name = "file"\n[inner]\nrate = 2\n')
    assert Outer.load(path).inner.rate == 2
    assert Outer.load(path, ["inner.rate=3"]).inner.rate == 3
    assert Outer.load(path, ["name=bare word"]).name == "bare word"
    assert Outer.load(path, ['name="quoted"']).name == "quoted"
    assert Outer.load(path, ["maybe.rate = 4"]).maybe == Inner(rate=4)
    for wrong in ("rate", "=3", " =3"):
        with pytest.raises(ConfigError, match="cannot read the override"):
            Outer.load(path, [wrong])
    with pytest.raises(ConfigError, match="name is a value, not a group"):
        Outer.load(path, ["name.x=3"])


def test_what_is_saved_loads_again(tmp_path: Path) -> None:
    config = DistillConfig.parse(
        {**TRAIN, "teacher": "runs/a b", "model": {"hidden_size": 32, "final_logit_softcapping": 3}}
    )
    config.save(tmp_path / "config.toml")
    assert DistillConfig.load(tmp_path / "config.toml") == config


def test_configs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().name = "y"


def test_nearest() -> None:
    assert nearest("stpes", ["steps", "seed"]) == "did you mean 'steps'?"
    assert nearest("x", ["steps", "seed"]) == "allowed: steps, seed"

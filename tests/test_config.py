from pathlib import Path

import pytest
from pydantic import Field

from gemmule.config import Config, nearest
from gemmule.errors import ConfigError
from gemmule.train.config import RunConfig, load_run_config

TRAIN = {"data": {"path": "d"}, "steps": 3}


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
        ("xyzzy", "unknown key 'xyzzy'; allowed: steps, seed, log_every"),
        ("optimizer.xyzzy", "allowed: name, learning_rate"),
    ],
)
def test_unknown_keys_name_the_nearest(key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(None, ["data.path=d", "steps=3", f"{key}=1"])
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
        ("runtime.threads=100000", "threads = 100000: input should be less than or equal to 1024"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate = nan"),
        ("optimizer.learning_rate=inf", "optimizer.learning_rate = inf"),
        ("optimizer.clip=0", "optimizer.clip = 0"),
        ("optimizer.beta2=1", "optimizer.beta2 = 1"),
        ("optimizer.beta1=nan", "optimizer.beta1 = nan"),
        ("optimizer.name=sgd", "optimizer.name = 'sgd': input should be 'muon' or 'adamw'"),
        ("schedule.warmup=nan", "schedule.warmup = nan"),
        ("checkpoint.minutes=nan", "checkpoint.minutes = nan"),
        ("data.micro_batch_size=3", "is not a multiple of micro_batch_size 3"),
        ("optimizer=3", "optimizer = 3: input should be a valid dictionary"),
        ("runtime.device=tpu", "device = 'tpu': input should be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_bad_values_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(None, ["data.path=d", "steps=3", override])
    assert message in str(caught.value)
    assert "{" not in str(caught.value)  # no dump of everything else
    assert "\n" not in str(caught.value)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"seed = -1.*unknown key 'stpes'"):
        RunConfig.parse({**TRAIN, "seed": -1, "stpes": 3})
    with pytest.raises(ConfigError, match=r"'steps' is required.*'data.path' is required"):
        RunConfig.parse({})
    with pytest.raises(ConfigError, match=r"set either teacher \(a model\) or targets"):
        RunConfig.parse({**TRAIN, "objective": {"kind": "distill"}})


@pytest.mark.parametrize("text", ["steps = = 3", "steps", "a = 1\na = 2", "\x00", "[a\n"])
def test_a_file_that_is_no_toml(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"a.toml is not a readable TOML file"):
        RunConfig.load(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config file at"):
        RunConfig.load(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        RunConfig.load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'data = "caf\xe9"')
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        RunConfig.load(tmp_path / "latin.toml")


def test_paths_are_saved_as_text(tmp_path: Path) -> None:
    RunConfig.parse({**TRAIN, "data": {"path": "caf\udcc3\udca9"}}).save(tmp_path / "a.toml")
    assert str(RunConfig.load(tmp_path / "a.toml").data.path) == "café"
    with pytest.raises(ConfigError, match="a path in them is not UTF-8; rename that file"):
        RunConfig.parse({**TRAIN, "data": {"path": "caf\udce9"}}).save(tmp_path / "b.toml")
    assert not (tmp_path / "b.toml").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_settings_saved_by_an_editor_of_windows(encoding: str, tmp_path: Path) -> None:
    text = 'steps = 3\r\n[model]\r\npreset = "1m"\r\n[data]\r\npath = "café"\r\n'
    (tmp_path / "a.toml").write_bytes(text.encode(encoding))
    config = RunConfig.load(tmp_path / "a.toml")
    assert (config.steps, str(config.data.path)) == (3, "café")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["teacher=x"], "unknown key 'teacher'; did you mean 'objective.teacher'?"),
        (["evaluate_every=9"], "unknown key 'evaluate_every'; did you mean 'evaluation.every'?"),
        (["keep_checkpoints=9"], "did you mean 'checkpoint.keep'?"),
        (["evaluate_evry=9"], "did you mean 'evaluation.every'?"),
        (["seqlen=9"], "did you mean 'data.seq_len'?"),
        (["preset=3m"], "did you mean 'model.preset'?"),
        (["data=runs/data"], "data = 'runs/data': a group of settings; did you mean 'data.path'?"),
        (["objective=distill"], "a group of settings; did you mean 'objective.kind'?"),
        (["objective.kind=distil"], "unknown kind; did you mean 'distill'?"),
        (["objective.alpha=0.5"], "'objective.kind' is required: one of pretrain, distill"),
        (["objective.kind=pretrain", "objective.alpha=0.5"],
         "objective.alpha is a setting of kind 'distill', and objective.kind is 'pretrain'"),
        (["objective.kind=distill", "objective.alhpa=1"], "did you mean 'alpha'?"),
        (["model.hiden_size=3"], "model: unknown key 'hiden_size'; did you mean 'hidden_size'?"),
    ],
)  # fmt: skip
def test_moved_keys_and_kinds_are_named(given: list[str], message: str) -> None:
    own = [] if given[0].startswith("data=") else ["data.path=d"]
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(None, ["steps=3", *own, *given])
    assert message in str(caught.value)


# config.toml of a run of the version before settings had groups, word for word.
FLAT = """
device = "cpu"
dtype = "float32"
compile = true
threads = 2
country = "FRA"
data = "runs/q/data"
preset = "1m"
corpus_tokens = 5000
steps = 210
batch_size = 8
micro_batch_size = 4
seq_len = 128
seed = 7
evaluate_every = 42
evaluation_tokens = 16384
heldout_tokens = 999
checkpoint_every = 100
checkpoint_minutes = 1.0
keep_checkpoints = 1
log_every = 10
teacher = "runs/q/teacher"
loss = "jsd"
beta = 0.25
skew = 0.1
temperature = 2.0
alpha = 0.5
route_above = 3.5
cross_tokenizer = false
span_temperature = 100.0

[model]
hidden_size = 64

[optimizer]
name = "adamw"
learning_rate = 0.002
embedding_learning_rate = 0.024
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
momentum = 0.95
clip = 1.0

[schedule]
name = "cosine"
warmup = 0.05
decay = 0.5
final = 0.1

[memorization]
every = 50
probes = 20
prompt_tokens = 50
continuation_tokens = 50
"""


def test_the_config_of_an_earlier_run_is_read_as_what_it_means(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(FLAT)
    config = load_run_config(path)
    assert config.model_dump(mode="json") == {
        "steps": 210, "seed": 7, "log_every": 10,
        "data": {"path": "runs/q/data", "corpus_tokens": 5000, "mixture": None, "stages": None,
                 "seq_len": 128, "batch_size": 8, "micro_batch_size": 4},
        "model": {"preset": "1m", "init": None, "hidden_size": 64},
        "objective": {"kind": "distill", "teacher": "runs/q/teacher", "targets": None,
                      "loss": "jsd", "beta": 0.25, "skew": 0.1, "temperature": 2.0, "alpha": 0.5,
                      "route_above": 3.5, "cross_tokenizer": False, "span_temperature": 100.0,
                      "span_ends": "token"},
        "optimizer": {"name": "adamw", "learning_rate": 0.002, "embedding_learning_rate": 0.024,
                      "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "momentum": 0.95,
                      "clip": 1.0},
        "schedule": {"name": "cosine", "warmup": 0.05, "decay": 0.5, "final": 0.1},
        "evaluation": {"every": 42, "tokens": 16384, "heldout_tokens": 999,
                       "keep": "last", "patience": None,
                       "memorization": {"every": 50, "probes": 20, "prompt_tokens": 50,
                                        "continuation_tokens": 50}},
        "checkpoint": {"every": 100, "minutes": 1.0, "keep": 1},
        "runtime": {"device": "cpu", "dtype": "float32", "compile": True, "threads": 2,
                    "country": "FRA", "attention": "block", "activation_checkpointing": "none"},
        "parallel": {"data_parallel_shard_degree": 1, "tensor_parallel_degree": 1},
        "adapter": None,
    }  # fmt: skip
    assert load_run_config(path, ["data.path=elsewhere"]).data.path == Path("elsewhere")
    config.save(path)
    assert load_run_config(path) == config
    # Without a teacher or targets it was a pretraining run.
    objective = ("teacher", "loss", "beta =", "skew", "temperature", "alpha", "route_above",
                 "cross_tokenizer", "span_temperature")  # fmt: skip
    path.write_text("\n".join(x for x in FLAT.splitlines() if not x.startswith(objective)))
    assert load_run_config(path).objective.kind == "pretrain"


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
    config = RunConfig.parse(
        {
            **TRAIN,
            "objective": {"kind": "distill", "teacher": "runs/a b"},
            "model": {"hidden_size": 32, "final_logit_softcapping": 3},
        }
    )
    config.save(tmp_path / "config.toml")
    assert RunConfig.load(tmp_path / "config.toml") == config


def test_configs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().name = "y"


def test_nearest() -> None:
    assert nearest("stpes", ["steps", "seed"]) == "did you mean 'steps'?"
    assert nearest("x", ["steps", "seed"]) == "allowed: steps, seed"


def test_paths_begin_with_a_home_folder_in_lists_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Paths(Config):
        one: Path
        several: tuple[Path, ...] = ()

    monkeypatch.setenv("HOME", "/homes/ada")
    paths = Paths(one=Path("~/a"), several=(Path("~/b"), Path("c")))
    assert paths.one == Path("/homes/ada/a")
    assert paths.several == (Path("/homes/ada/b"), Path("c"))

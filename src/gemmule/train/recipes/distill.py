"""Distillation: from a teacher, from a logit store, or from a teacher with another tokenizer."""

from pathlib import Path

from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError, DataError
from gemmule.model.gemma import Gemma
from gemmule.runtime.world import SOLO, World
from gemmule.teachers.any_tokenizer import OwnTokenizer
from gemmule.teachers.logit_store import Store
from gemmule.teachers.open import open_foreign_teacher, open_teacher
from gemmule.train.config import DistillConfig, RunConfig
from gemmule.train.initial_model import initial_model
from gemmule.train.objectives.cross_tokenizer import CrossTokenizerDistillation
from gemmule.train.objectives.distillation import Distillation
from gemmule.train.objectives.stored_distillation import StoredDistillation
from gemmule.train.recipe import Recipe, language_model_recipe
from gemmule.train.recipes.pretrain import packed_text, text_source


def build(config: RunConfig, dataset: Dataset, world: World = SOLO) -> Recipe:
    """The recipe of one of the ranks.

    Raises:
        UserError: when a setting, the data, the teacher or the logit store cannot be used.
    """
    settings = config.objective
    assert isinstance(settings, DistillConfig)
    student = initial_model(config, dataset)
    if settings.targets is not None:
        return _from_store(config, settings, settings.targets, dataset, student, world)
    assert settings.teacher is not None  # DistillConfig has one or the other
    if settings.cross_tokenizer:
        return _across_tokenizers(config, settings, settings.teacher, dataset, student, world)
    return _from_teacher(config, settings, settings.teacher, dataset, student, world)


def _from_teacher(
    config: RunConfig,
    settings: DistillConfig,
    path: str,
    dataset: Dataset,
    student: Gemma,
    world: World,
) -> Recipe:
    teacher = open_teacher(path, dataset, config.data.seq_len)
    _check_vocabulary(f"the teacher, {path},", teacher.vocab_size, student)
    source = text_source(config, dataset, world)
    objective = Distillation(
        teacher,
        settings.temperature,
        settings.alpha,
        settings.divergence,
        settings.route_above,
    )
    return language_model_recipe(
        config,
        dataset,
        student,
        source,
        objective,
        teachers=[teacher.describe()],
        world=world,
    )


def _across_tokenizers(
    config: RunConfig,
    settings: DistillConfig,
    path: str,
    dataset: Dataset,
    student: Gemma,
    world: World,
) -> Recipe:
    teacher = open_foreign_teacher(path, config.data.seq_len)
    source = text_source(config, dataset, world)
    objective = CrossTokenizerDistillation(
        teacher,
        OwnTokenizer(dataset.tokenizer),
        settings.span_temperature,
        settings.alpha,
        at_spaces=settings.span_ends == "space",
        vocab_size=dataset.tokenizer.vocab_size,
    )
    return language_model_recipe(
        config,
        dataset,
        student,
        source,
        objective,
        teachers=[teacher.describe()],
        world=world,
    )


def _from_store(
    config: RunConfig,
    settings: DistillConfig,
    path: Path,
    dataset: Dataset,
    student: Gemma,
    world: World,
) -> Recipe:
    store = open_store(config, path, student, dataset)
    source = packed_text(config, dataset, world, store.sequences)
    objective = StoredDistillation(store, settings.temperature, settings.alpha, settings.divergence)
    return language_model_recipe(
        config,
        dataset,
        student,
        source,
        objective,
        teachers=[store.manifest["teacher"]],
        inputs={"targets": store.summary()},
        world=world,
    )


def open_store(config: RunConfig, path: Path, student: Gemma, dataset: Dataset) -> Store:
    """Opens the logit store that a student learns from.

    Raises:
        DataError: when it is incomplete, or was recorded on other data.
        ConfigError: when its sequences or its vocabulary do not fit.
    """
    store = Store.open(path)
    corpus, tokenizer = store.manifest["corpus"], store.manifest["tokenizer"]
    data = config.data
    if corpus["fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"{path} was recorded on other data ({corpus['name']}, fingerprint "
            f"{corpus['fingerprint'][:12]}) than {data.path} ({dataset.name}, "
            f"{dataset.fingerprint[:12]}): train on the data it was recorded on, or record these"
        )
    if tokenizer != dataset.tokenizer.fingerprint:
        raise DataError(
            f"{path} was recorded with another tokenizer (fingerprint {tokenizer[:12]}) than that "
            f"of {data.path} ({dataset.tokenizer.fingerprint[:12]}): record these data"
        )
    if store.seq_len != data.seq_len:
        raise ConfigError(
            f"data.seq_len = {data.seq_len}: {path} was recorded in sequences of {store.seq_len} "
            f"tokens, and its targets belong to them: set data.seq_len = {store.seq_len}, or "
            f"record again with --seq-len {data.seq_len}"
        )
    _check_vocabulary(f"the teacher of {path}", store.vocab_size, student)
    store.check_complete()
    return store


def _check_vocabulary(whose: str, size: int, student: Gemma) -> None:
    if size != student.config.vocab_size:
        raise ConfigError(
            f"{whose} has {size} rows in its vocabulary and the student "
            f"{student.config.vocab_size}: set model.vocab_size = {size}"
        )

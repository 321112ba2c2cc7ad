"""What the check of a configuration refuses, and that it says where and why."""

import pathlib
from typing import Annotated

import numpy as np
import pytest
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from iamcl2r_jax import config, methods, models
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.values import number

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def set_field(c, field, value):
    *parents, name = field.split(".")
    for parent in parents:
        c = c[parent]
    with c.ignore_type():
        c[name] = value


@pytest.mark.parametrize("file", ["tiny.py", "cifar100r.py", "cifar100r.py:tasks=31"])
def test_a_file_is_loaded_as_by_the_flag(file):
    path = str(CONFIGS / file)
    loaded = config.load(path)
    assert loaded == ConfigFileFlagParser("config").parse(path)
    with pytest.raises(AttributeError, match="epochs"):
        loaded.train.epoch = 3


def test_defaults_are_valid():
    config.validate(config.default())
    config.validate_pretrain(config.default_pretrain())


@pytest.mark.parametrize("kind", ["default", "default_pretrain"])
def test_a_changed_default_is_seen_in_review(kind):
    """The file is the configuration as text; a change of a default changes a line of it."""
    golden = pathlib.Path(__file__).parent / "golden" / f"{kind}.txt"
    assert "\n".join(lines_of(getattr(config, kind)())) + "\n" == golden.read_text()


def lines_of(c, prefix=""):
    for name, value in c.items():
        if isinstance(value, ConfigDict):
            yield from lines_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} = {value!r}"


@pytest.fixture
def own_method(monkeypatch):
    """A method whose options have every kind of default."""

    def loss(
        inputs,
        *,
        anything=None,
        weight: float | None = None,
        share: Annotated[float, number("[0, 1]")] = 0.5,
        class_weight=-1.0,
        layers=(1, 2),
        name="a",
        count=3,
    ):
        return 0.0, {}

    monkeypatch.setitem(methods.METHODS, "own", methods.Method(loss, False, "this test"))
    c = config.default()
    c.method = "own"
    return c.lock()


@pytest.mark.parametrize(
    ("field", "good", "wrong", "message"),
    [
        (
            "anything",
            (None, 1, "a", True, (1.0, 2.0)),
            [1],
            r"=\[1\]: must be True or False, a",
        ),
        ("weight", (None, 2, 0.5), "a", "='a': must be a number in .*, or None"),
        ("share", (0, 1.0), 1.5, r"=1.5: must be a number in \[0, 1\]"),
        ("class_weight", (-2.0, 3), float("nan"), "=nan: must be a number in"),
        ("layers", ((), (3,)), (None,), r"=\(None,\): must be"),
        ("name", ("b",), 1, "=1: must be a string"),
        ("count", (-5,), 1.0, "=1.0: must be an integer"),
    ],
)
def test_an_option_of_a_method_may_be_what_its_default_or_annotation_says(
    field, good, wrong, message, own_method
):
    config.validate(own_method)  # its defaults
    for value in good:
        set_field(own_method, f"method_options.own.{field}", value)
        config.validate(own_method)
        written = files.as_json(own_method.to_dict())
        assert config.recorded(written).to_dict() == own_method.to_dict()
    set_field(own_method, f"method_options.own.{field}", wrong)
    with pytest.raises(InputError, match=f"^method_options.own.{field}{message}"):
        config.validate(own_method)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("method", "hok", "method='hok': must be one of hoc, simplex"),
        ("seed", -1, "seed=-1: must be an integer in [0, 4294967295]"),
        ("seed", 2**32, "seed=4294967296: must be an integer in [0, 4294967295]"),
        ("resident_gib", -1.0, "resident_gib=-1.0: must be a number in [0, 1e15]"),
        ("resident_gib", float("nan"), "resident_gib=nan: must be a number in [0, 1e15]"),
        ("name", "", "name='': must be a plain file name"),
        ("name", "../a", "name='../a': must be a plain file name"),
        (
            "replacements.tasks",
            (0.5, 2, 4),
            "replacements.tasks=(0.5, 2, 4): must be a tuple",
        ),
        (
            "replacements.tasks",
            "",
            "replacements.tasks='': must be a tuple, each item an integer in [0, 2**53]",
        ),
        ("replacements.classes", ("60", 1, 2), "replacements.classes=('60', 1, 2): must be a tup"),
        ("replacements.checkpoints", (1, 2, 3), "replacements.checkpoints=(1, 2, 3): must be a"),
        (
            "image.std",
            ("a", "b", "c"),
            "image.std=('a', 'b', 'c'): must be a tuple of",
        ),
        (
            "image.mean",
            (float("nan"),) * 3,
            "image.mean=(nan, nan, nan): must be a tuple of length 3, each item a number",
        ),
        ("num_slots", 1, "num_slots=1: must be an integer in [2, 32768]"),
        ("memory_per_class", -1, "memory_per_class=-1: must be an integer in [0, 2**53]"),
        ("train.epochs", 0, "train.epochs=0: must be an integer in [1, 1000000]"),
        ("train.batch_size", 0, "train.batch_size=0: must be an integer in [1, 65536]"),
        ("train.learning_rate", 0.0, "train.learning_rate=0.0: must be a number in (0, 1e6]"),
        (
            "train.learning_rate",
            float("nan"),
            "train.learning_rate=nan: must be a number in (0, 1e6]",
        ),
        ("train.final_learning_rate", float("inf"), "train.final_learning_rate=inf"),
        ("train.optimizer_options.sgd.momentum", 1.0, "momentum=1.0: must be a number in [0, 1)"),
        ("train.optimizer", "adam", "train.optimizer='adam': must be one of sgd, adamw"),
        ("image.augmentation", "no", "image.augmentation='no': must be one of crop_flip, none"),
        ("image.size", 4, "image.size=4"),
        (
            "image.augmentation_options.crop_flip.padding",
            33,
            "padding=33: must be at most image",
        ),
        ("image.std", (0.2, 0.0, 0.2), "image.std=(0.2, 0.0, 0.2)"),
        ("model.backbone", "resnet19", "resnet19"),
        ("model.options.stem", "big", "stem"),
        (
            "method_options.hoc.ce_weight",
            1.5,
            "method_options.hoc.ce_weight=1.5: must be a number in [0, 1]",
        ),
        (
            "method_options.hoc.mu",
            float("nan"),
            "method_options.hoc.mu=nan: must be a number in (0, 1e6]",
        ),
        ("stream.initial_classes", 0, "stream.initial_classes=0: must be an integer in [1, 2**53]"),
        ("stream.increment", 0, "stream.increment=0: must be an integer in [1, 2**53]"),
        ("stream.limit_per_class", -2, "stream.limit_per_class=-2"),
        (
            "replacements.tasks",
            (2, 0, 4),
            "replacements.tasks=(2, 0, 4): must be different tasks in increasing order",
        ),
        ("replacements.tasks", (0, 2), "replacements.classes=(100, 300, 600): must name one model"),
        ("replacements.checkpoints", ("a",), "replacements.checkpoints=('a',): must name one"),
        ("replacements.classes", (60, 120, 1025), "replacements.recipe.classes=1025"),
        ("replacements.recipe.train.epochs", 0, "replacements.recipe.train.epochs=0"),
        ("image.size", 28, "replacements.recipe.image.size=32: must equal image.size=28"),
        (
            "metrics",
            ("recall",),
            "metrics=('recall',): must be a tuple, each item one of identification",
        ),
        ("metrics", (), "metrics=()"),
        ("evaluations", {}, "evaluations={}: must hold"),
    ],
)
def test_refusal_names_field_value_and_remedy(field, value, message):
    c = config.default()
    set_field(c, field, value)
    with pytest.raises(InputError) as error:
        config.validate(c)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_stream_and_external_classes_may_not_share_slots():
    c = config.default()
    config.check_stream(c, num_stream_classes=424, num_tasks=5)  # 424 + 600 = 1024, none to spare
    with pytest.raises(InputError, match="425 stream and 600 external classes; at least 1025"):
        config.check_stream(c, num_stream_classes=425, num_tasks=5)


def test_replacement_beyond_the_last_task():
    c = config.default()
    with pytest.raises(InputError, match=r"replacements.tasks=\(0, 2, 4\): the stream has 4"):
        config.check_stream(c, num_stream_classes=52, num_tasks=4)


def test_the_recipe_follows_the_runs_simplex():
    c = config.default()
    c.num_slots = 700
    assert c.replacements.recipe.num_slots == 700
    config.validate(c)


def test_a_recipe_for_another_simplex_is_refused():
    c = config.default()
    c.replacements.recipe = config.default_pretrain()  # its num_slots is its own
    c.num_slots = 700
    with pytest.raises(InputError, match=r"recipe\.num_slots=1024: must equal num_slots=700"):
        config.validate(c)


def test_differences_are_named_with_both_values():
    first = {"a": 1, "train": {"epochs": 2, "rate": 0.5}, "only": [1]}
    second = {"a": 1, "train": {"epochs": 3, "rate": 0.5}}
    assert config.differences(first, first) == []
    assert config.differences(first, second) == [
        "only: [1] there, None here",
        "train.epochs: 2 there, 3 here",
    ]


def test_numpy_is_no_part_of_a_configuration():
    """What a run writes to config.json must be JSON."""

    def leaves(value):
        if isinstance(value, dict):
            for part in value.values():
                yield from leaves(part)
        else:
            yield value

    for leaf in leaves(config.default().to_dict()):
        assert not isinstance(leaf, np.ndarray | np.generic)


@pytest.mark.parametrize("name", models.BACKBONES)
def test_any_backbone_can_be_chosen_with_all_its_options(name):
    c = config.default()
    config.choose_backbone(c.model, name)
    config.validate(c)
    options = c.model.options.to_dict()
    assert options.keys() == models.default_options(name).keys() - {"dtype"}
    assert options["width"] == config.default().model.options.width  # what both have is kept
    model = models.create(name, 7, **options)
    assert all(getattr(model, option) == value for option, value in options.items())
    c.model.options.width = 32  # as the command line sets it, on the locked configuration


def test_the_default_backbone_chosen_is_the_default():
    c = config.default()
    config.choose_backbone(c.model, c.model.backbone)
    assert c.to_dict() == config.default().to_dict()


def test_a_backbone_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"^backbone='resnet19' is unknown; there are resn"):
        config.choose_backbone(config.default().model, "resnet19")


@pytest.mark.parametrize("name", ["glyphs", "pretrain_glyphs"])
def test_a_config_takes_its_backbone_after_the_colon(name):
    path = pathlib.Path(__file__).parents[1] / "configs" / f"{name}.py"
    plain, chosen = (
        ConfigFileFlagParser("config").parse(f"{path}{arg}") for arg in ("", ":backbone=vit_tiny")
    )
    default = config.default() if name == "glyphs" else config.default_pretrain()
    assert plain.to_dict() == default.to_dict()
    assert chosen.model.backbone == "vit_tiny"
    assert chosen.model.options.patch_size == 4
    if name == "glyphs":
        config.validate(chosen)
        assert chosen.replacements.recipe.model == chosen.model
        assert chosen.name != plain.name  # nor does it take the plain run's directory
    else:
        config.validate_pretrain(chosen)


def test_a_configuration_comes_back_from_json_as_it_was():
    for c in (config.default(), config.load(str(CONFIGS / "cifar100r.py"))):
        assert config.recorded(files.as_json(c.to_dict())).to_dict() == c.to_dict()


def test_a_run_is_readable_whatever_other_methods_and_optimisers_there_are():
    c = config.default()
    written = files.as_json(c.to_dict())
    written["method_options"]["hoc"]["mu"] = c.method_options.hoc.mu = 3.0
    del written["method_options"]["fan"]
    written["method_options"]["of_another_program"] = {"weight": 1.0}
    del written["replacements"]["recipe"]["train"]["optimizer_options"]["adamw"]
    written["image"]["augmentation_options"]["of_another_program"] = {}
    assert config.recorded(written).to_dict() == c.to_dict()


def test_options_that_are_not_in_use_do_not_tell_configurations_apart():
    first, second = config.default(), config.default()
    second.method_options.er = ConfigDict({"weight": 1.0})
    second.replacements.recipe.train.optimizer_options.adamw.eps = 1e-3
    first, second = (config.without_unused_options(c.to_dict()) for c in (first, second))
    assert first == second
    assert first["train"]["optimizer_options"].keys() == {"sgd"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, r"^image=None: must be a ConfigDict with the fields size, mean"),
        ({"image": 0}, r"^image=0: must be a ConfigDict with the fields size, mean"),
        (
            {"metrics": "recall_at_1"},
            r"^metrics='recall_at_1': must be a tuple, each item one of",
        ),
        ({"replacements": 3}, r"^replacements=3: must be a ConfigDict"),
        ({"evaluations": {}}, r"^evaluations=.*: must hold at least one"),
        (
            {"evaluations": {"a": {"dataset": "b"}}},
            r"^evaluations\.a\.gallery_split: missing field",
        ),
        ({"method": {}}, r"^method=.*: must be one of hoc"),
        ({"methods": 1}, r"^methods: unknown field; did you mean method\?"),
        ({"a.b": 1}, r"a\.b"),
        ({"items": 1}, r"items"),
    ],
)
def test_a_configuration_that_no_run_wrote_is_one_line(change, message):
    written = files.as_json(config.default().to_dict()) | change
    with pytest.raises(InputError, match=message) as error:
        config.recorded(written)
    assert "\n" not in str(error.value)

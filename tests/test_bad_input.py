"""Whatever is put in, the answer is one line that says what is wrong, or a run as documented.

Every generated case is counted, and the last test prints how many there were.
"""

import contextlib
import io
import math
import re
import string

import jax
import numpy as np
import pytest
import smallworld
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from iamcl2r_jax import config, methods, models
from iamcl2r_jax.data import sources
from iamcl2r_jax.data.sources import ImageSet
from iamcl2r_jax.data.stream import build_stream
from iamcl2r_jax.models import checkpoints, stored
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import DamagedError, InputError
from iamcl2r_jax.torch_import import torch_files
from iamcl2r_jax.training import inputs, runs
from iamcl2r_jax.training.external import load_external

cases = {}


def counted(kind, max_examples):
    """Hypothesis as used here: seeded, without a database, each case counted."""

    def decorate(test):
        cases[kind] = 0
        return settings(
            max_examples=max_examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(test)

    return decorate


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    smallworld.write_images(root)
    smallworld.register()
    return root


def attempt(errors, function, *args, **options):
    """What a call returns and None; or None and what it is refused with, which is one line."""
    try:
        return function(*args, **options), None
    except errors as error:
        message = str(error)
    assert message.isprintable(), message  # no line break either
    return None, message


# --- Configurations -----------------------------------------------------------------------------


def fields_of(c, prefix=""):
    """Every field with its default value, groups of fields among them."""
    for name, value in c.items():
        yield prefix + name, value
        if isinstance(value, ConfigDict):
            yield from fields_of(value, f"{prefix}{name}.")


def put(c, field, value):
    *parents, name = field.split(".")
    for parent in parents:
        c = c[parent]
    with c.ignore_type(), c.unlocked(), contextlib.suppress(OverflowError):
        c[name] = value
    if not isinstance(value, dict) and type(c[name]) is not type(value):
        c._fields[name] = value  # it was cast, as by no means every way to put it there does


FREE = ("evaluations.", "model.options.")  # whose names are not those of the default
FIELDS = [
    (field, value)
    for field, value in fields_of(config.default())
    if not field.endswith("options") and not any(part in field for part in FREE)
]
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.complex_numbers(),
    st.lists(st.integers(), max_size=3),
    st.tuples(st.one_of(st.integers(), st.text(max_size=3), st.none(), st.floats())),
    st.dictionaries(st.text(string.ascii_lowercase, min_size=1, max_size=3), st.integers()),
    st.just(object()),
    st.just(int),
)


def of_another_kind(example):
    """Values that no field with this default can take."""
    if isinstance(example, ConfigDict):
        # An empty group lacks its fields.
        return ANYTHING.filter(lambda value: not isinstance(value, dict) or len(example))
    if isinstance(example, tuple):
        wrong_items = st.tuples(st.one_of(st.none(), st.booleans(), st.binary(), st.just(object())))
        return st.one_of(ANYTHING.filter(lambda value: not isinstance(value, tuple)), wrong_items)
    allowed = (int, float) if type(example) is float else (type(example),)
    return ANYTHING.filter(lambda value: type(value) not in allowed)


@st.composite
def wrong_kinds(draw):
    field, example = draw(st.sampled_from(FIELDS))
    return field, draw(of_another_kind(example))


def refused(world, field, value):
    """The message of the refusal of a run, otherwise valid, with one field changed."""
    c = smallworld.get_config(str(world))
    put(c, field, value)
    _, message = attempt(InputError, check, c)
    assert message is not None
    return message


def check(c):
    config.validate(c)
    config.check_stream(c, *inputs.stream_size(c))


@counted("fields of a wrong kind", 250)
@given(case=wrong_kinds())
def test_a_value_of_another_kind_is_refused_by_name(world, case):
    cases["fields of a wrong kind"] += 1
    field, value = case
    message = refused(world, field, value)
    # These of the recipe's are references to the run's: setting one sets the other.
    names = [field]
    for shared in ("num_slots", "resident_gib"):
        if field in (both := [shared, f"replacements.recipe.{shared}"]):
            names = both
    assert re.match(rf"({'|'.join(map(re.escape, names))})[.=:]", message), message


numbers = st.one_of(st.floats(), st.integers(-(10**30), 10**30))
OUT_OF_RANGE = {
    "seed": st.one_of(st.integers(max_value=-1), st.integers(2**32)),
    "num_slots": st.one_of(st.integers(max_value=8), st.integers(2**15 + 1)),
    "memory_per_class": st.one_of(st.integers(max_value=-1), st.integers(2**53 + 1)),
    "train.epochs": st.one_of(st.integers(max_value=0), st.integers(10**6 + 1)),
    "train.batch_size": st.one_of(st.integers(max_value=0), st.integers(2**16 + 1)),
    "train.learning_rate": numbers.filter(lambda x: not 0 < x <= 1e6),
    "train.final_learning_rate": numbers.filter(lambda x: not 0 < x <= 1e6),
    "train.optimizer_options.sgd.momentum": numbers.filter(lambda x: not 0 <= x < 1),
    "train.optimizer_options.sgd.weight_decay": numbers.filter(lambda x: not 0 <= x <= 1e6),
    "saving.every_epochs": st.integers(max_value=-1),
    "saving.every_seconds": numbers.filter(lambda x: not 0 <= x <= 2**53),
    "saving.steps_per_call": st.one_of(st.integers(max_value=0), st.integers(2**53 + 1)),
    "resident_gib": numbers.filter(lambda x: not 0 <= x <= 2**53),
    "image.size": st.one_of(st.integers(max_value=7), st.integers(2**12 + 1)),
    "image.augmentation_options.crop_flip.padding": st.one_of(
        st.integers(max_value=-1), st.integers(9)
    ),
    "image.std": st.one_of(
        st.tuples(*[st.floats(0.1, 1)] * 2),
        st.tuples(*[st.floats(max_value=0)] * 3),
        st.tuples(*[st.just(math.nan)] * 3),
    ),
    "stream.initial_classes": st.one_of(st.integers(max_value=0), st.integers(7)),
    "stream.increment": st.one_of(st.integers(max_value=0), st.integers(2**53 + 1)),
    "stream.limit_per_class": st.integers(max_value=-1),
    "stream.class_order_seed": st.integers(max_value=-2),
    "method": st.text().filter(lambda name: name not in methods.METHODS),
    "method_options.hoc.ce_weight": numbers.filter(lambda x: not 0 <= x <= 1),
    "method_options.hoc.mu": st.sampled_from([math.nan, math.inf, -math.inf, 10**400]),
    "name": st.text().filter(lambda s: not s or s[0] == "." or "/" in s or not s.isprintable()),
    "model.backbone": st.text(),
    "model.options": st.dictionaries(st.text(max_size=5), ANYTHING, min_size=1).filter(
        lambda options: not (options.keys() == {"width"} and type(options["width"]) is int)
    ),
    "model.options.width": st.one_of(
        st.integers(2**16 + 1), ANYTHING.filter(lambda value: type(value) is not int)
    ),
    "replacements.tasks": st.one_of(
        st.tuples(st.just(0), st.integers(smallworld.NUM_TASKS)),  # beyond the last task
        st.tuples(st.integers(1), st.just(0)),
        st.tuples(st.integers(0, 2)),  # fewer than there are models
    ),
    "replacements.classes": st.one_of(
        st.tuples(st.just(2), st.integers(7, 12)),  # with six of the stream: slots would collide
        st.tuples(st.just(2), st.integers(13)),
        st.tuples(st.integers(max_value=1), st.just(2)),
    ),
    "replacements.checkpoints": st.tuples(st.text(max_size=5)),
    "replacements.recipe.train.optimizer_options.sgd.momentum": numbers.filter(
        lambda x: not 0 <= x < 1
    ),
    "metrics": st.one_of(st.just(()), st.tuples(st.text(max_size=3))),
    "evaluations": st.dictionaries(st.text(string.ascii_lowercase, min_size=1), ANYTHING),
}
# A slot has two owners, and a model two lists: the message names the other field.
ALSO = {
    "image.std": r"image\.mean",
    "replacements.tasks": r"replacements\.classes",
    "replacements.classes": r"num_slots|replacements\.recipe\.classes",
    "num_slots": r"replacements\.recipe\.\w+",
    "image.size": r"replacements\.recipe\.image",
    "resident_gib": r"replacements\.recipe\.resident_gib",
    "model.options": "model",
    "model.options.width": "model",
    "model.backbone": "model",
}


@st.composite
def out_of_range(draw):
    field = draw(st.sampled_from(sorted(OUT_OF_RANGE)))
    return field, draw(OUT_OF_RANGE[field])


@counted("fields out of range", 250)
@given(case=out_of_range())
def test_a_value_out_of_range_is_refused_by_name(world, case):
    cases["fields out of range"] += 1
    field, value = case
    message = refused(world, field, value)
    names = "|".join(filter(None, (re.escape(field), ALSO.get(field))))
    assert re.match(rf"({names})[.=:]", message), message


FINE = {
    "seed": st.integers(0, 2**32 - 1),
    "num_slots": st.integers(9, 2**15),
    "memory_per_class": st.integers(0, 2**53),  # a memory may be larger than the class
    "train.epochs": st.integers(1, 10**6),
    "train.batch_size": st.integers(1, 2**16),  # a batch may be larger than the set
    "train.learning_rate": st.floats(1e-30, 1e6),
    "train.optimizer_options.sgd.momentum": st.floats(0, 1, exclude_max=True),
    "saving.every_epochs": st.integers(0, 2**53),
    "saving.every_seconds": st.one_of(st.integers(0, 10**9), st.floats(0, 1e9)),
    "resident_gib": st.one_of(st.integers(0, 10**9), st.floats(0, 1e9)),
    "stream.initial_classes": st.integers(1, 2),
    "stream.increment": st.integers(1, 2),
    "stream.limit_per_class": st.integers(0, 2**53),
    "stream.class_order_seed": st.integers(-1, 2**53),
    "name": st.text(string.ascii_letters + "äß漢 ._-", min_size=1).filter(lambda s: s[0] != "."),
}


@st.composite
def fine(draw):
    field = draw(st.sampled_from(sorted(FINE)))
    return field, draw(FINE[field])


@counted("fields that are fine", 100)
@given(case=fine())
def test_what_is_documented_is_accepted(world, case):
    cases["fields that are fine"] += 1
    c = smallworld.get_config(str(world))
    put(c, *case)
    check(c)
    stream = inputs.load_stream(c)
    assert sum(len(stream.train_indices(task)) for task in range(len(stream.tasks))) > 0


@pytest.mark.parametrize("field", ["train.epochs", "saving", "stream.increment", "method_options"])
def test_a_field_that_is_missing_or_unknown_is_named(world, field):
    c = smallworld.get_config(str(world))
    *parents, name = field.split(".")
    group = c
    for parent in parents:
        group = group[parent]
    value = group[name]
    with group.unlocked():
        del group[name]
        group[f"{name}s"] = value
    with pytest.raises(InputError, match=rf"^{field}: missing field; start"):
        config.validate(c)
    with group.unlocked():
        group[name] = value
    with pytest.raises(InputError, match=rf"^{field}s: unknown field; did you mean {name}\?"):
        config.validate(c)


def test_an_increment_beyond_what_is_left_is_a_smaller_last_task(world):
    c = smallworld.get_config(str(world))
    c.stream.increment = 1000
    c.replacements.tasks = (0, 1)
    check(c)
    assert [len(task) for task in inputs.load_stream(c).tasks] == [2, 4]


# --- Images, labels, folders --------------------------------------------------------------------

FORMATS = {
    "png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "gif": ["L", "P", "RGB"],
    "jpg": ["L", "RGB", "CMYK"],
    "bmp": ["1", "L", "P", "RGB"],
    "tiff": ["1", "L", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB", "YCbCr"],
    "webp": ["RGB", "RGBA"],
}


@st.composite
def images(draw):
    """Content of an image file: (suffix, mode, bytes, whether all of it is there)."""
    suffix = draw(st.sampled_from(sorted(FORMATS)))
    mode = draw(st.sampled_from(FORMATS[suffix]))
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    frames = [picture(rng, mode, width, height) for _ in range(draw(st.integers(1, 2)))]
    file = io.BytesIO()
    animated = {"save_all": True, "append_images": frames[1:]} if suffix != "bmp" else {}
    if suffix in ("jpg", "png"):
        animated = {}
    frames[0].save(file, Image.registered_extensions()[f".{suffix}"], **animated)
    content = file.getvalue()
    kept = draw(st.one_of(st.just(len(content)), st.integers(0, len(content) - 1)))
    return suffix, mode, content[:kept], kept == len(content)


def picture(rng, mode, width, height):
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.uint16))
    if mode in ("I", "F"):
        return Image.fromarray(rng.integers(0, 2**20, (height, width)).astype(np.int32)).convert(
            mode
        )
    if mode in ("LAB", "YCbCr"):
        return Image.frombytes(mode, (width, height), rng.bytes(3 * width * height))
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8))
    return noise.convert("RGB").convert(mode) if mode not in ("RGBA", "LA") else noise.convert(mode)


@counted("image files", 150)
@given(case=images())
def test_an_image_is_brought_to_size_or_refused_by_file(tmp_path_factory, case):
    cases["image files"] += 1
    suffix, mode, content, whole = case
    root = tmp_path_factory.mktemp("odd")
    (root / "train" / "a").mkdir(parents=True)
    (root / "train" / "a" / f"odd.{suffix}").write_bytes(content)
    Image.new("RGB", (8, 8)).save(root / "train" / "a" / "plain.png")
    loaded, message = attempt(InputError, sources.load, f"folder:{root}", "train", image_size=8)
    if message:
        assert f"odd.{suffix} is unreadable" in message
        assert "replace or remove it" in message
        assert not whole or mode in ("I", "F", "LAB")
    else:
        assert loaded.images.shape == (2, 8, 8, 3)
        assert loaded.images.dtype == np.uint8
        assert mode not in ("I", "F")


@counted("labels", 100)
@given(
    labels=st.lists(st.integers(-3, 6), min_size=1, max_size=12),
    initial=st.integers(-1, 6),
    increment=st.integers(-1, 9),
    limit=st.one_of(st.none(), st.integers(-1, 4)),
)
def test_labels_make_a_stream_or_are_refused(labels, initial, increment, limit):
    """Four classes; the labels, and how they are split, may be anything."""
    cases["labels"] += 1
    right = set(labels) == {0, 1, 2, 3} and 1 <= initial <= 4 and increment >= 1
    right = right and (limit is None or limit >= 1)

    def make():
        images = ImageSet(
            np.zeros((len(labels), 1, 1, 3), np.uint8), np.array(labels, np.int32), tuple("abcd")
        )
        return build_stream(
            images,
            images,
            initial_classes=initial,
            increment=increment,
            limit_per_class=limit,
            class_order_seed=None,
        )

    stream, message = attempt((InputError, ValueError), make)
    if message:
        assert not right
        assert re.search("label|class|increment", message)
    else:
        assert right
        assert sum(len(task) for task in stream.tasks) == 4


@st.composite
def folders(draw):
    """{split: {class: number of images}}, with gaps."""
    names = st.sampled_from(["a", "b", "c c", "ä", ".hidden", "Z"])
    split = st.dictionaries(names, st.integers(0, 3), max_size=4)
    return draw(st.dictionaries(st.sampled_from(["train", "test", "extra"]), split, max_size=3))


@counted("folders", 60)
@given(tree=folders())
def test_a_folder_is_loaded_or_what_it_lacks_is_named(tmp_path_factory, tree):
    cases["folders"] += 1
    root = tmp_path_factory.mktemp("folder")
    for split, classes in tree.items():
        (root / split).mkdir()
        for name, count in classes.items():
            (root / split / name).mkdir()
            for i in range(count):
                Image.new("RGB", (3, 5)).save(root / split / name / f"{i}.png")
    seen = {n: k for n, k in tree.get("train", {}).items() if n[0] != "."}
    whole = bool(seen) and min(seen.values()) >= 1
    loaded, message = attempt(InputError, sources.load, f"folder:{root}", "train", image_size=8)
    if message:
        assert not whole
        assert f"folder:{root}" in message
    else:
        assert whole
        counts = np.bincount(loaded.labels, minlength=len(loaded.class_names))
        assert {n: k for n, k in zip(loaded.class_names, counts, strict=True) if k} == seen


# --- Checkpoints and files ----------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def external(world):
    """Metadata and variables of an external model, as its checkpoint has them."""
    c = smallworld.get_config(str(world))
    k = smallworld.NUM_SLOTS
    architecture = stored.Architecture.of("one_layer", k - 1, {"width": 1})
    image = stored.ImageInput.of(c.image)
    metadata = stored.Metadata("external", architecture, "simplex", k, (0, 3), image)
    variables = models.init_variables(architecture.module(), jax.random.key(0), smallworld.SIZE)
    return files.as_json(metadata.to_json()), jax.device_get(variables)


@st.composite
def changes(draw, record):
    """A copy of a record in which one place holds something else, or is missing."""
    record = files.as_json(record)
    place, *deeper = draw(st.sampled_from([(name,) for name in record] + deep_places(record)))
    group = record
    for name in deeper:
        group, place = group[place], name
    if draw(st.booleans()):
        value = draw(JSON.filter(lambda value: value != group[place]))
        group[place] = value
    else:
        del group[place]
    return record


def deep_places(record):
    return [
        (name, inner)
        for name, value in record.items()
        if isinstance(value, dict | list)
        for inner in (value if isinstance(value, dict) else range(len(value)))
    ]


def described(record, variables):
    """Stands in for `checkpoints.load`: a checkpoint that holds these."""

    def load(path, expected):
        expected(record)
        return record, variables

    return load


@counted("records of external models", 120)
@given(data=st.data())
def test_a_record_that_is_not_right_is_refused(world, external, data):
    """The record is foreign; its checksum fits, as that of any file may be made to."""
    cases["records of external models"] += 1
    record, variables = external
    changed = data.draw(changes(record))
    c = smallworld.get_config(str(world))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoints, "load", described(changed, variables))
        loaded, message = attempt(InputError, load_external, c, "foreign")
    if message:
        assert "checkpoint foreign" in message
    else:
        # Nothing but the slots, the idle option and what is free may differ.
        free = {"slots": 0, "architecture": 0, "about": 0}
        found = files.as_json(loaded.metadata.to_json())
        assert found | free == record | free
        assert loaded.architecture.backbone == "one_layer"
        assert 0 <= loaded.metadata.slots[1] <= c.num_slots


@counted("records of tasks", 80)
@given(data=st.data())
def test_a_record_of_a_task_that_is_not_right_is_refused(external, data):
    cases["records of tasks"] += 1
    about = {
        "task": 1,
        "replaced_by": "there",
        "external": {"classes": 3, "accuracy": None},
        "memory": [3, 1],
        "task_accuracy": 0.5,
        "history": [{"loss": 1.0}],
    }
    changed = external[0] | {"kind": "task", "about": data.draw(changes(about))}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoints, "load_metadata", lambda path: changed)
        loaded, message = attempt(InputError, runs.load_task_record, "foreign", 1)
    if message:
        assert message == "checkpoint foreign: its record is not that of task 2 of a run"
    else:
        assert all(type(index) is int and index >= 0 for index in loaded["memory"])
        assert isinstance(loaded["task_accuracy"], float)


def test_values_that_are_not_finite_are_refused(world, external):
    record, variables = external
    c = smallworld.get_config(str(world))
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), variables)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoints, "load", described(record, broken))
        with pytest.raises(InputError, match="holds values that are not finite"):
            load_external(c, "foreign")


@counted("files in place of JSON", 80)
@given(content=st.binary() | JSON.map(lambda value: repr(value).encode()))
def test_a_file_that_is_not_ours_is_told(tmp_path_factory, content):
    cases["files in place of JSON"] += 1
    path = tmp_path_factory.mktemp("json") / "config.json"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"config\.json is damaged or was edited"):
        files.read_json(str(path))


def test_a_file_of_endless_brackets_is_told(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(DamagedError):
        files.read_json(str(tmp_path / "a.json"))


@counted("files in place of PyTorch's", 60)
@given(content=st.binary(max_size=200), head=st.sampled_from([b"", b"PK\3\4", b"01234567{"]))
def test_a_file_that_is_not_pytorchs_is_told(tmp_path_factory, content, head):
    cases["files in place of PyTorch's"] += 1
    path = tmp_path_factory.mktemp("pt") / "network.pt"
    path.write_bytes(head + content)
    _, message = attempt(InputError, torch_files.read_state_dict, str(path))
    assert str(path) in message


def test_at_least_500_cases_were_generated():
    print(f"\n{sum(cases.values())} inputs: " + ", ".join(f"{n} {k}" for k, n in cases.items()))
    if all(cases.values()):  # all of the file ran
        assert sum(cases.values()) >= 500

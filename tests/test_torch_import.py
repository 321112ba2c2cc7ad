"""PyTorch checkpoints: taken over strictly, never executed, and given back unchanged."""

import contextlib
import copyreg
import io
import os
import pickle
import subprocess
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax
import numpy as np
import pytest

from iamcl2r_jax import models, simplex, torch_import
from iamcl2r_jax.models import expected_variables, stored
from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.torch_import import pickles, torch_files

ROOT = Path(__file__).parents[1]
OFFICIAL = ("resnet18", "senet18", "regnety_400mf")
WIDTH, K = 8, 16  # of the small networks


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="module")
def networks(torch):
    import torch_networks

    return torch_networks


@pytest.fixture(scope="module")
def small(networks):
    """The official state dict of a narrow ResNet-18, as NumPy arrays."""
    state = networks.build("resnet18", simplex.dsimplex(K), WIDTH).state_dict()
    return {name: value.numpy() for name, value in state.items()}


@pytest.fixture
def save(torch, tmp_path):
    """Saves an object with torch.save, arrays as tensors, and returns the path."""

    def save(content):
        def convert(value):
            if isinstance(value, dict):
                return type(value)((name, convert(part)) for name, part in value.items())
            return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

        torch.save(convert(content), tmp_path / "network.pt")
        return str(tmp_path / "network.pt")

    return save


def random_variables(backbone, num_features=K - 1, **options):
    """Random variables of a model of ours, statistics included."""
    shapes = expected_variables(models.create(backbone, num_features, **options), 32)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [rng.uniform(0.1, 1, x.shape).astype("f4") for x in leaves])


def load(path, backbone, **options):
    return torch_import.read(path, backbone, **options).variables


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def refusal(path, backbone="resnet18", **options):
    """The message of the refusal, which must be one line that names the file."""
    with pytest.raises(InputError) as caught:
        load(path, backbone, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert path in message
    return message


# --- Features ---


@pytest.mark.parametrize("backbone", [*OFFICIAL, "resnet50"])  # resnet34 has resnet18's blocks
def test_features_are_those_of_pytorch(torch, networks, save, backbone):
    network = networks.build(backbone, simplex.dsimplex(1024))
    imported = torch_import.read(save({"net": network.state_dict()}), backbone)
    model = models.create(backbone)  # the contract's: full width, 1023 features
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    images *= np.float32([1, 10]).reshape(2, 1, 1, 1)
    compiled = jax.jit(model.apply).lower(imported.variables, images)
    compiled = compiled.compile(compiler_options={"xla_backend_optimization_level": 0})
    ours = np.asarray(compiled(imported.variables, images))
    with torch.no_grad():
        theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    assert np.linalg.norm(theirs[0] - theirs[1]) > 1e-2 * np.linalg.norm(theirs[0])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    assert imported.architecture.module() == model


def test_width_and_stem_are_read_from_the_shapes(networks, save):
    network = networks.build("resnet18", simplex.dsimplex(K), WIDTH, stem="small")
    spec = torch_import.read(save(network.state_dict()), "resnet18").architecture
    assert dict(spec.options) == {"width": WIDTH, "stem": "small"}
    assert spec.num_features == K - 1


# --- The forms in which the same network comes ---


@pytest.mark.parametrize("backbone", OFFICIAL)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_spellings_of_names(networks, save, backbone, prefix):
    state = networks.build(backbone, simplex.dsimplex(K), WIDTH).state_dict()
    expected = load(save({"net": state}), backbone)
    for stage in "1234":
        state = {
            name.replace(f"layer{stage}.", f"layer{stage}.blocks."): value
            for name, value in state.items()
        }
    assert "backbone.layer4.blocks.1.conv1.weight" in state
    state = {prefix + name: value for name, value in state.items()}
    assert_identical(load(save({"net": state}), backbone), expected)


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model.module._orig_mod."],
)
def test_what_wrappers_put_before_names(small, save, prefix):
    expected = load(save({"net": small}), "resnet18")
    state = {prefix + name: value for name, value in small.items()}
    for content in (state, {"state_dict": state}, state | {"n_averaged": np.int64(3)[None]}):
        assert_identical(load(save(content), "resnet18"), expected)


def test_wrappers_of_pytorch_itself(torch, networks, tmp_path):
    network = networks.build("resnet18", simplex.dsimplex(K), WIDTH)
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    expected = load(str(tmp_path / "plain.pt"), "resnet18")
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(network))
    torch.save({"model_state_dict": averaged.state_dict()}, tmp_path / "wrapped.pt")
    assert_identical(load(str(tmp_path / "wrapped.pt"), "resnet18"), expected)


@pytest.mark.parametrize("key", ["model_state_dict", "model", "state_dict_ema"])
def test_where_the_network_lies_in_a_file(small, save, key):
    optimizer = {"state": {"0": {"momentum": small["fc1.weight"]}}, "lr": 0.1}
    expected = load(save({"net": small}), "resnet18")
    content = {"epoch": 3, "optimizer": optimizer, key: small}
    assert_identical(load(save(content), "resnet18"), expected)
    message = refusal(save({"epoch": 3, "weights": small, "optimizer": optimizer}))
    assert "holds tensors under weights; looked for a state dict under net, state_dict, " in message


def test_names_of_another_network_are_told(small, save):
    state = {f"encoder.{name}": value for name, value in small.items()}
    message = refusal(save(state))
    assert "holds tensors of other names (encoder.backbone.conv1.weight, " in message
    assert "looked for backbone.conv1.weight, fc1.weight, fc2.weight, or conv1.weight" in message


def test_a_tensor_saved_after_expand(torch, small, tmp_path):
    state = {name: torch.from_numpy(value) for name, value in small.items()}
    state["backbone.bn1.weight"] = torch.ones(1).expand(WIDTH)
    state["backbone.layer1.0.conv1.weight"] = torch.randn(1, WIDTH, 3, 3).expand(WIDTH, -1, -1, -1)
    path = str(tmp_path / "expanded.pt")
    torch.save(state, path)
    read = torch_files.read_state_dict(path)
    for name, value in state.items():
        np.testing.assert_array_equal(read[name], value.numpy())
    load(path, "resnet18")


def test_forms_of_files(torch, small, save, tmp_path):
    expected = load(save({"net": small}), "resnet18")
    parameters = OrderedDict(
        (name, torch.nn.Parameter(torch.from_numpy(value), requires_grad=False))
        for name, value in small.items()
    )
    for content in (small, OrderedDict(small), parameters, {"state_dict": small, "epoch": 3}):
        assert_identical(load(save(content), "resnet18"), expected)
    for protocol in (2, 3, 4, 5):
        path = str(tmp_path / "protocol.pt")
        torch.save({"net": parameters}, path, pickle_protocol=protocol)
        assert_identical(load(path, "resnet18"), expected)


def test_official_checkpoint_with_classes_that_are_not_installed(torch, small, tmp_path):
    """`args` is an object of a class unknown here that holds arrays, tensors and transforms."""

    class ExperimentParams:
        pass

    class Compose:
        def __init__(self, transforms):
            self.transforms = transforms

        def __setstate__(self, state):
            raise AssertionError("must never be called")

    modules = {}
    for kind, name in ((ExperimentParams, "iamcl2r.params"), (Compose, "torchvision.transforms")):
        kind.__module__, kind.__qualname__ = name, kind.__name__
        modules[name] = types.ModuleType(name)
        setattr(modules[name], kind.__name__, kind)
        package = name.partition(".")[0]
        modules[package] = types.ModuleType(package)
    args = ExperimentParams()
    args.seed, args.replace_ids, args.backbone = 42, [0, 2, 4], "resnet18"
    args.classes_at_task = [np.arange(10), np.arange(25)]
    args.data = {3: np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)}
    args.seen_classes = torch.arange(10)
    args.transform = Compose([Compose([]), {1, 2}, frozenset([3]), b"bytes", 2**80, 1.5, None])
    network = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    content = {
        "net": OrderedDict((name, torch.from_numpy(value)) for name, value in small.items()),
        "args": args,
        "optimizer": optimizer.state_dict(),
        "best_acc": np.float64(0.5),
        "scheduler_lr": None,
    }
    path = str(tmp_path / "ckpt_0.pt")
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        torch.save(content, path)
    assert not {"iamcl2r", "torchvision"} & sys.modules.keys()
    state = torch_files.read_state_dict(path)
    assert list(state) == list(small)
    load(path, "resnet18")


def test_neither_torch_nor_its_classes_are_needed(small, save, monkeypatch):
    path = save({"net": small})
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
        monkeypatch.setitem(sys.modules, name, None)
    load(path, "resnet18")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions(torch, small, save, dtype):
    converted = {
        name: torch.from_numpy(value).to(getattr(torch, dtype)) if value.ndim else value
        for name, value in small.items()
    }
    path = save({"net": converted})
    state = torch_files.read_state_dict(path)
    assert state["fc1.weight"].dtype == dtype
    back = torch_import.to_torch_state_dict(load(path, "resnet18"), "resnet18")
    for name, value in converted.items():
        if name != "fc2.weight" and "num_batches" not in name:
            assert back[name].dtype == np.float32
            np.testing.assert_array_equal(back[name], value.float().numpy())


def test_strides_and_shared_storages(torch, small, tmp_path):
    tensors = {name: torch.from_numpy(value) for name, value in small.items()}
    expected = {name: value.numpy() for name, value in tensors.items()}
    one_storage = torch.cat([value.flatten().double() for value in tensors.values()])
    strange, start = {}, 0
    for name, value in tensors.items():
        count = value.numel()
        part = one_storage[start : start + count].view(value.shape)
        strange[name] = part if value.is_floating_point() else value
        start += count
    name = "backbone.layer2.0.conv1.weight"
    strange[name] = tensors[name].to(memory_format=torch.channels_last)
    strange["fc1.weight"] = tensors["fc1.weight"].T.contiguous().T
    strange["backbone.bn1.weight"] = torch.stack([tensors["backbone.bn1.weight"]] * 3, 1)[:, 1]
    assert not any(strange[n].is_contiguous() for n in (name, "fc1.weight", "backbone.bn1.weight"))
    torch.save({"net": strange}, tmp_path / "strange.pt")
    for name, value in torch_files.read_state_dict(str(tmp_path / "strange.pt")).items():
        np.testing.assert_array_equal(value, expected[name])
    load(str(tmp_path / "strange.pt"), "resnet18")


# --- Strict both ways ---


def test_every_difference_is_named(small, save):
    state = dict(small)
    del state["backbone.layer3.1.bn2.running_var"], state["backbone.conv1.weight"]
    state["backbone.layer1.0.conv1.weight"] = np.zeros((8, 8, 1, 1), np.float32)
    state["backbone.layer1.0.conv2.weight"] = np.zeros((8, 8, 3, 3), np.int64)
    state["backbone.bn1.bias"] = np.full(8, np.nan, np.float32)
    state["extra.weight"] = state["line\nfeed"] = np.zeros(2, np.float32)
    state["backbone.layer5.0.bn1.num_batches_tracked"] = np.zeros((), np.int64)
    message = refusal(save({"net": state}))
    for part in (
        "backbone.layer3.1.bn2.running_var is missing",
        "backbone.conv1.weight is missing",
        "extra.weight is not part of the model",
        "backbone.layer5.0.bn1.num_batches_tracked is not part of the model",
    ):
        assert part in message
    # Without the first convolution the width is not known; with it, these are the only ones.
    state["backbone.conv1.weight"] = small["backbone.conv1.weight"]
    state["backbone.layer3.1.bn2.running_var"] = small["backbone.layer3.1.bn2.running_var"]
    message = refusal(save({"net": state}))
    assert message.partition("resnet18: ")[2].split("; ") == [
        "backbone.bn1.bias has values that are not finite",
        "backbone.layer1.0.conv1.weight is [8, 8, 1, 1], needs [8, 8, 3, 3]",
        "backbone.layer1.0.conv2.weight is int64, needs floating point",
        "extra.weight is not part of the model",
        r"'line\nfeed' is not part of the model",
        "backbone.layer5.0.bn1.num_batches_tracked is not part of the model",
    ]


def test_counters_of_batches_may_be_absent(small, save):
    state = {name: value for name, value in small.items() if "num_batches" not in name}
    assert len(state) == len(small) - 20
    load(save(state), "resnet18")


def test_both_spellings_at_once(small, save):
    twice = small | {"backbone.layer1.blocks.0.conv1.weight": np.zeros(1, np.float32)}
    assert "backbone.layer1.0.conv1.weight twice" in refusal(save(twice))


@pytest.mark.parametrize("backbone", ["resnet34", "resnet50", "senet18", "regnety_400mf"])
def test_another_backbone(small, save, backbone):
    assert f"does not fit {backbone}: " in refusal(save(small), backbone)


def test_unknown_backbone(small, save):
    with pytest.raises(InputError, match="backbone='vgg' cannot be imported; there are resn"):
        load(save(small), "vgg")


def test_another_simplex(small, save):
    turned = np.roll(small["fc2.weight"], 1, axis=0)
    difference = np.abs(turned - small["fc2.weight"]).max()
    message = refusal(save(small | {"fc2.weight": turned}))
    assert message.endswith(
        f"fc2.weight is not our simplex of K=16; the largest difference is {difference:.3g}"
    )
    near = small["fc2.weight"] + np.float32(3e-5)
    assert "largest difference is 3e-05" in refusal(save(small | {"fc2.weight": near}))
    same = small["fc2.weight"] + np.float32(3e-6)
    load(save(small | {"fc2.weight": same}), "resnet18")


def test_no_simplex_and_learned_classifier(small, save):
    state = dict(small)
    del state["fc2.weight"]
    assert "fc2.weight is missing, needs [16, 15]" in refusal(save(state))
    state["fc2.weight"] = np.zeros((10, 15), np.float32)
    message = refusal(save(state))
    assert "fc2.weight is [10, 15], needs [16, 15]" in message
    assert "drop-in" in message


def test_no_map_where_trunk_and_feature_are_of_one_size(small, save):
    state = small | {"fc2.weight": simplex.dsimplex(65)}
    del state["fc1.weight"]
    path = save(state)
    variables = load(path, "resnet18")
    np.testing.assert_array_equal(variables["params"]["projection"]["kernel"], np.eye(64))
    exported = torch_import.to_torch_state_dict(variables, "resnet18")
    assert exported.keys() == state.keys()
    state["fc2.weight"] = simplex.dsimplex(K)
    assert "fc1.weight is missing, needs [15, 64]" in refusal(save(state))


# --- Classifiers without a simplex ---


@pytest.mark.parametrize(("backbone", "head"), [("resnet50", "fc"), ("senet18", "linear")])
def test_trunk_of_a_classifier(networks, save, backbone, head):
    network = networks.build(backbone, simplex.dsimplex(K), WIDTH)
    whole = load(save(network.state_dict()), backbone)
    trunk = {f"{head}.weight": np.zeros((1000, 64), np.float32), f"{head}.bias": np.zeros(1000)}
    path = save(trunk | network.backbone.state_dict())
    assert "can only be a starting point: give num_classes" in refusal(path, backbone)

    def read(seed):
        return torch_import.read(path, backbone, num_features=7, key=jax.random.key(seed))

    imported = read(0)
    assert not imported.drop_in
    assert imported.ignored == (f"{head}.weight", f"{head}.bias")
    params = imported.variables["params"]
    kernel = params.pop("projection")["kernel"]
    assert kernel.shape == (whole["params"].pop("projection")["kernel"].shape[0], 7)
    assert_identical(imported.variables, whole)
    np.testing.assert_array_equal(kernel, read(0).variables["params"]["projection"]["kernel"])
    assert not np.array_equal(kernel, read(1).variables["params"]["projection"]["kernel"])

    broken = trunk | network.backbone.state_dict()
    del broken["layer2.0.conv1.weight"]
    message = refusal(save(broken), backbone, num_features=7, key=jax.random.key(0))
    assert f"does not fit {backbone}: layer2.0.conv1.weight is missing" in message


# --- Hostile and damaged files ---


def archive(path, pickled, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("network/data.pkl", pickled)
        file.writestr("network/version", "3\n")
        for key, data in enumerate(storages):
            file.writestr(f"network/data/{key}", data)
    return str(path)


class Reduced:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args, state=None):
        self.value = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.value


def hostile_pickles(canary):
    """Pickles whose loading by `pickle` makes the file `canary`."""
    command = f"touch {canary}"
    text = command.encode()
    touch = Reduced(Path.touch, Path(canary))
    state = Reduced(eval, f"open({str(canary)!r}, 'w').close() or {{}}")
    return {
        "reduce": pickle.dumps({"net": Reduced(os.system, command)}, 2),
        "stack_global": pickle.dumps({"net": {"a": Reduced(os.system, command)}}, 4),
        "exec": pickle.dumps(Reduced(exec, f"open({str(canary)!r}, 'w').close()"), 2),
        "nested": pickle.dumps({"net": {}, "args": [({"x": (touch,)},)]}, 5),
        "state": pickle.dumps(Reduced(types.SimpleNamespace, state=state), 2),
        "text": b"cposix\nsystem\n(S'%s'\ntR." % text,
        "inst": b"(S'%s'\niposix\nsystem\n." % text,
        "obj": b"(cposix\nsystem\nS'%s'\no." % text,
        # The state is set by a method that the pickle itself has put in place.
        "build": b"cargparse\nNamespace\n)\x81}(S'__setstate__'\ncposix\nsystem\nubS'%s'\nb."
        % text,
    }


@pytest.mark.parametrize("case", hostile_pickles(""))
def test_nothing_in_a_file_is_run(tmp_path, case):
    canary = tmp_path / "canary"
    pickled = hostile_pickles(canary)[case]
    path = archive(tmp_path / "network.pt", pickled)
    refusal(path)
    assert not canary.exists()
    pickle.loads(pickled)  # the control: the canary does sing
    assert canary.exists()


@pytest.fixture
def events():
    """What this process imports, opens, executes or unpickles meanwhile."""
    seen, armed = [], True
    kinds = ("import", "open", "exec", "compile", "pickle.", "os.", "subprocess.", "shutil.")

    def audit(event, args):
        if armed and event.startswith(kinds):
            seen.append((event, *map(str, args)))

    sys.addaudithook(audit)  # for good; hence `armed`
    yield seen
    armed = False


@pytest.mark.parametrize("case", hostile_pickles(""))
def test_reading_a_pickle_does_nothing_else(tmp_path, events, case):
    pickled = hostile_pickles(tmp_path / "canary")[case]
    events.clear()
    pickles.read_pickle(pickled)
    assert not events
    with contextlib.suppress(Exception):
        pickle.loads(pickled)  # the control: the hook does hear it
    assert any(event[0] == "pickle.find_class" for event in events)


def test_registered_extensions_are_not_used(events):
    """A pickle may name classes by numbers that the process has registered, or used before."""
    copyreg.add_extension("posix", "system", 250)
    try:
        pickled = b"\x82\xfa(S'touch /dev/null/canary'\ntR."
        assert pickle.loads(pickled) != 0  # now in the cache; it ran, and could not make the file
        events.clear()
        assert pickles.read_pickle(pickled).name == "extension.250"
        assert not events
    finally:
        copyreg.remove_extension("posix", "system", 250)


@pytest.mark.parametrize("place", ["args", "tensor", "storage"])
def test_nothing_beside_the_network_is_run(torch, small, tmp_path, place):
    canary = tmp_path / "canary"
    attack = Reduced(os.system, f"touch {canary}")
    content = {"net": {name: torch.from_numpy(value) for name, value in small.items()}}
    if place == "args":
        content["args"] = attack
    elif place == "tensor":
        content["net"]["fc1.weight"] = attack
    else:
        rebuild = torch._utils._rebuild_tensor_v2
        content["net"]["fc1.weight"] = Reduced(rebuild, attack, 0, (15, 64), (64, 1), False, {})
    path = str(tmp_path / "network.pt")
    torch.save(content, path)
    if place == "args":
        load(path, "resnet18")
    else:
        assert "fc1.weight" in refusal(path)
    assert not canary.exists()


def tensor_pickle(
    shape=(2, 2), stride=(2, 1), offset=0, numel=4, storage=b"FloatStorage", key=b"0"
):
    """{"net": {"w": tensor}} as torch.save writes it."""
    # The two parts of the tensor's place, without the end of their own pickles.
    place = tuple(pickle.dumps(part, 0)[:-1] for part in (shape, stride))
    return (
        b"\x80\x02}X\x03\x00\x00\x00net}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\x00\x00\x00storagectorch\n%s\nS'%s'\nS'cpu'\nI%d\ntQ"
        b"I%d\n%s%s\x89ccollections\nOrderedDict\n)RtRss." % (storage, key, numel, offset, *place)
    )


def test_tensor_written_by_hand(tmp_path):
    path = archive(tmp_path / "w.pt", tensor_pickle(), [np.arange(4, dtype="f4").tobytes()])
    np.testing.assert_array_equal(torch_files.read_state_dict(path)["w"], [[0, 1], [2, 3]])
    path = archive(
        tmp_path / "t.pt",
        tensor_pickle(shape=(3, 1), stride=(1, 3), offset=1),
        [np.arange(4, dtype="f4").tobytes()],
    )
    np.testing.assert_array_equal(torch_files.read_state_dict(path)["w"], [[1], [2], [3]])


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"numel": 10**12}, "data/0 has 16 bytes"),
        ({"numel": 5}, "data/0 has 16 bytes, 5 elements of float32 need 20"),
        ({"storage": b"DoubleStorage"}, "data/0 has 16 bytes, 4 elements of float64 need 32"),
        ({"storage": b"QInt8Storage"}, "w is kept in a torch.QInt8Storage"),
        ({"offset": 1}, "w does not lie inside its storage of 4 elements"),
        ({"offset": -1}, "w does not lie inside"),
        ({"shape": (2, 3)}, "w does not lie inside"),
        ({"stride": (3, 1)}, "w does not lie inside"),
        ({"stride": (-1, 1)}, "w does not lie inside"),
        ({"stride": (1,)}, "w does not lie inside"),
        ({"shape": (10**12, 10**12), "stride": (0, 0)}, "w is [1000000000000, 1000000000000], of"),
        ({"shape": (10**5, 10**5), "stride": (0, 0)}, "w is [100000, 100000], of a storage of 4"),
        ({"shape": (1, 4), "stride": (10**30, 1)}, "w does not lie inside"),
        ({"shape": (0, 10**30)}, "w does not lie inside"),
        ({"shape": "no"}, "w does not lie inside"),
        ({"key": b"1"}, "data/1 is missing"),
        ({"key": b"../data.pkl"}, "data/../data.pkl is missing"),
    ],
)
def test_tensors_that_do_not_fit_their_storages(tmp_path, tensor, message):
    path = archive(tmp_path / "w.pt", tensor_pickle(**tensor), [bytes(16)])
    assert message in refusal(path)


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"", "its pickle is broken"),
        (b"\x80\x02}", "its pickle is broken"),
        (b"hello", "its pickle is broken"),
        (b"0.", "its pickle is broken"),
        (b"h\x07.", "its pickle is broken"),
        (b"]K\x01a}b\x97.", "its pickle is broken"),  # a buffer outside of the file
        (b"K\x01K\x02a.", "its pickle is broken"),  # appends to a number
        (b"\x96" + b"\xff" * 7 + b"\x00.", "its pickle is broken"),  # 64 PiB of bytearray
        # As a key, whose hash would be taken.
        (b"}" + b"(" * 10**5 + b"t" * 10**5 + b"K\x01s.", "holds no state dict but a dict"),
        (b"\x8e" + b"\xff" * 8 + b".", "its pickle is broken"),  # bytes longer than the file
        (b"K\x01r\xff\xff\xff\xff.", "holds no state dict but a int"),  # a memo of 4 G entries
        (b"(" * 100_000 + b"t" * 100_000 + b".", "holds no state dict but a tuple"),
        (b"K\x01" + b")R" * 100_000 + b".", "its pickle is broken"),  # calls a number
        (pickle.dumps({"net": {"a\n" * 99: 1}}, 2), r"\na\na"),  # messages stay on one line
        (pickle.dumps({"net": {"a": 1.5}}, 2), "a is not a plain tensor but a float"),
        (
            pickle.dumps({"net": {"a": complex}}, 2),
            "a is not a plain tensor but the class __builtin",
        ),
        (
            pickle.dumps({"epoch": 3}, 2),
            "holds no tensors; looked for a state dict under net, state",
        ),
        (pickle.dumps({}, 2), "holds no state dict but a dict"),
        (pickle.dumps(Reduced(complex, 1, 2), 2), "but an object of __builtin__.complex"),
    ],
)
def test_pickles_that_are_no_checkpoints(tmp_path, pickled, message):
    assert message in refusal(archive(tmp_path / "network.pt", pickled))


def test_files_that_are_no_checkpoints(torch, small, save, tmp_path):
    def write(data):
        (tmp_path / "other.pt").write_bytes(data)
        return str(tmp_path / "other.pt")

    assert "No such file" in refusal(str(tmp_path / "absent.pt"))
    assert "Is a directory" in refusal(str(tmp_path))
    for data in (b"", b"PK", b"\x93NUMPY" + bytes(100), b"\0" * 600):
        assert "is neither a zip-format torch.save file nor" in refusal(write(data))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    assert "PyTorch before 1.6" in refusal(write(tar.getvalue()))
    old = str(tmp_path / "old.pt")
    torch.save({}, old, _use_new_zipfile_serialization=False)
    assert "PyTorch before 1.6" in refusal(old)

    whole = Path(save({"net": small})).read_bytes()
    for length in (10, 1000, len(whole) // 2, len(whole) - 1):
        assert "is damaged or cut short" in refusal(write(whole[:length]))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    assert "Bad CRC-32" in refusal(write(bytes(flipped)))

    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.writestr("photos/1.txt", "")
    assert "a zip file, but not of torch.save" in refusal(str(tmp_path / "photos.zip"))
    storages = [bytes(16)]
    path = archive(tmp_path / "z.pt", tensor_pickle(), storages, zipfile.ZIP_DEFLATED)
    assert "compressed or encrypted" in refusal(path)


# --- .safetensors ---


def test_safetensors(small, save, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = str(tmp_path / "network.safetensors")
    safetensors.save_file(small, path)
    expected = load(save(small), "resnet18")
    assert_identical(load(path, "resnet18"), expected)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:-3])
    assert "cannot be read" in refusal(path)


def test_missing_packages_are_named(small, tmp_path, monkeypatch):
    directory = str(tmp_path / "model")
    variables = random_variables("resnet18", width=WIDTH)
    save_simplex_model(directory, variables, {"width": WIDTH})
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for suffix, package in (("pt", "PyTorch"), ("safetensors", "safetensors")):
        output = tmp_path / f"out.{suffix}"
        with pytest.raises(InputError, match=rf"needs .*{package}.*iamcl2r_jax\[torch\]"):
            torch_import.export_model(directory, str(output))
        assert not output.exists()
    path = tmp_path / "network.safetensors"
    path.write_bytes(bytes(8) + b"{}      ")
    assert "needs the package safetensors" in refusal(str(path))


# --- Export ---


def save_simplex_model(directory, variables, options, head="simplex"):
    architecture = stored.Architecture.of("resnet18", K - 1, options)
    image = stored.ImageInput(32, (0.5,) * 3, (0.25,) * 3)
    metadata = stored.Metadata("external", architecture, head, K, (0, 0), image)
    stored.save_model(directory, stored.Model(metadata, variables))
    return architecture


@pytest.mark.parametrize("backbone", [*OFFICIAL, "resnet50", "resnet34"])
def test_export_and_import_are_bit_identical(networks, torch, save, backbone):
    variables = random_variables(backbone, width=WIDTH)
    state = torch_import.to_torch_state_dict(variables, backbone)
    assert_identical(load(save({"net": state}), backbone), variables)
    network = networks.build(backbone, simplex.dsimplex(K), WIDTH)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})


@pytest.mark.parametrize("backbone", ["resnet20", "resnet32", "vit_tiny"])
def test_backbones_that_the_official_code_lacks(tmp_path, backbone):
    variables = random_variables(backbone)
    with pytest.raises(InputError, match=f"'{backbone}' cannot be exported: the official code has"):
        torch_import.to_torch_state_dict(variables, backbone)


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_export_of_a_checkpoint(tmp_path, suffix):
    pytest.importorskip("safetensors" if suffix == "safetensors" else "torch")
    directory, output = str(tmp_path / "model"), str(tmp_path / "new" / f"network.{suffix}")
    variables = random_variables("resnet18", width=WIDTH, stem="small")
    architecture = save_simplex_model(directory, variables, {"width": WIDTH, "stem": "small"})
    torch_import.export_model(directory, output)
    imported = torch_import.read(output, "resnet18")
    assert imported.architecture == architecture
    assert_identical(imported.variables, variables)
    assert [path.name for path in Path(output).parent.iterdir()] == [f"network.{suffix}"]
    with pytest.raises(InputError, match="exists already"):
        torch_import.export_model(directory, output)


def test_export_of_what_is_no_simplex_model(tmp_path):
    directory = str(tmp_path / "model")
    variables = random_variables("resnet18", width=WIDTH)
    save_simplex_model(directory, variables, {"width": WIDTH}, head="linear")
    with pytest.raises(InputError, match=r"head='linear', .* needs head='simplex'"):
        torch_import.export_model(directory, str(tmp_path / "a.pt"))
    with pytest.raises(InputError, match=r"must end in \.pt, \.pth, \.safetensors"):
        torch_import.export_model(directory, str(tmp_path / "a.bin"))


# --- External models and the programs ---


CIFAR = stored.ImageInput(32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
IMAGENET = stored.ImageInput(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_external_model(small, save, tmp_path):
    path, output = save({"net": small}), str(tmp_path / "model")
    lines = torch_import.import_model(path, "resnet18", output, classes=5, dataset="imagenet32")
    assert any("simplex of K=16 is ours" in line for line in lines)
    required = {"kind": "external", "head": "simplex", "num_slots": K, "image": CIFAR}
    external = stored.load_model(output, **required)
    assert_identical(external.variables, load(path, "resnet18"))
    assert external.metadata.slots == (0, 5)
    assert external.metadata.about["dataset"] == "imagenet32"
    assert external.metadata.about["source"]["drop_in"] is True
    assert len(external.metadata.about["source"]["sha256"]) == 64
    with pytest.raises(InputError, match="exists already"):
        torch_import.import_model(path, "resnet18", output)


def test_external_model_of_a_classifier(networks, save, tmp_path):
    network = networks.build("resnet18", simplex.dsimplex(K), WIDTH)
    path, output = save(network.backbone.state_dict()), str(tmp_path / "model")
    lines = torch_import.import_model(path, "resnet18", output, num_classes=20)
    assert any("starting point for training, not a drop-in" in line for line in lines)
    external = stored.load_model(output, num_slots=20, image=IMAGENET)
    assert external.metadata.about["source"]["drop_in"] is False
    assert external.metadata.slots == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 20}, "features of 15 dimensions, not num_features=19"),
        ({"classes": 17}, "classes=17: must be in 0..16"),
        ({"image": {"mean": (0.5,)}}, "mean and std must be three numbers each"),
    ],
)
def test_bad_options_of_an_external_model(small, save, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        torch_import.import_model(save(small), "resnet18", str(tmp_path / "model"), **options)
    assert not (tmp_path / "model").exists()


def program(name, *args):
    command = [sys.executable, ROOT / "launch" / name, *args, "--compilation_cache="]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_programs(small, save, tmp_path):
    source, model, target = save({"net": small}), tmp_path / "model", tmp_path / "back.pt"
    done = program(
        "import_torch.py", f"--checkpoint={source}", "--backbone=resnet18", f"--output={model}"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"external model: {model}"
    assert "--classes" in done.stdout  # says what it could not know
    done = program("export_torch.py", f"--checkpoint={model}", f"--output={target}")
    assert done.returncode == 0, done.stderr
    back = torch_files.read_state_dict(str(target))
    assert back.keys() == small.keys()
    for name, value in back.items():
        if "num_batches" not in name:
            np.testing.assert_array_equal(value, small[name])
    done = program(
        "import_torch.py", f"--checkpoint={source}", "--backbone=senet18", f"--output={model}2"
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: checkpoint {source} does not fit senet18: ")
    assert len(done.stderr.splitlines()) == 1

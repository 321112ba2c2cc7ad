"""No program ever ends in a traceback: seeded odd flags, fields, paths, environments and outputs.

On request: `python -m pytest tests/test_fuzz_programs.py -n 0 -s -m slow`. FUZZ_SEED and FUZZ_CASES
choose other cases, FUZZ_ONLY=3,14 some of them. Figures for RELIABILITY.md are printed.
"""

import collections
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import smallworld
from starter import Starter

from iamcl2r_jax.config import default, default_pretrain

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "jax-small"
SEED, CASES = int(os.environ.get("FUZZ_SEED", 0)), int(os.environ.get("FUZZ_CASES", 220))
FRESH = 16  # every 16th case is a process of its own, which imports in its environment
LIMIT = 300  # seconds; a program that still runs then has been accepted
STATUSES = {0, 1, 2, 3, 75, 120}  # 120: Python's, standard output could not be flushed

NUMBERS = ("-1", "0", "1", "2", "1e999", "-1e-400", "nan", "inf", "9" * 30, "0.5", "1_0", "٣")
VALUES = ("", " ", "None", "True", "()", "[", "(1,", "{'a': 1}", "a,b", ",", "'", '"', "\\", "ü")
VALUES += (
    "a\nb",
    "\x01",
    "x" * 300,
    "[red]",
    "[/b]",
    ":bird:",
    "%s",
    "{}",
    "$HOME",
    "🐦",
    "-",
    "--",
)
PATHS = (
    "~",
    "~/x",
    "~nobody/x",
    "/dev/null/x",
    "/proc/x",
    "/dev/null",
    "/dev/full",
    ".",
    "..",
    "/",
)
PATHS += ("a[b]", "a*?", "a\\b", "gs://bucket/x", "s3://bucket/x", "file:///x", "http://x", "c:\\x")
PATHS += ("{world}/file", "{world}/loop", "{world}/empty", "{world}/file/x", "{world}/run")
PATHS += ("{world}/run/tasks/0", "{world}/run/results.json", "{world}/damaged", "{world}/stream")
PATHS += (
    "{world}/damaged/tasks/1",
    "{world}/[odd]",
    "{world}/bytes\udcff",
    "{world}/x\udcff",
    "x/" * 200,
)
SETS = ("folder:", "folder:.", "folder:/nowhere", "folder:{world}/open", "folder:{world}/empty")
SETS += ("folder:{world}/file", "folder:{world}/[odd]", "folder:~", "mnist:1.0.0", "coco", "mnistt")
SETS += (
    "glyphs/latin:9.9.9",
    "glyphs/x",
    "folder:{world}/bytes\udcff",
    "folder:{world}/broken",
    "a b",
)
ANY = NUMBERS + VALUES + PATHS + SETS

# Flags of each program, and what makes it do its work.
FLAGS = {
    program: tuple(names.split())
    for program, names in {
        "main": "config workdir compilation_cache coordinator num_processes process_id",
        "pretrain": "config workdir compilation_cache num_processes",
        "evaluate": "workdir models gallery query gallery_split query_split data_dir output seed",
        "import_torch": "checkpoint backbone output classes dataset num_classes seed image_size "
        "image_mean image_std",
        "export_torch": "checkpoint output",
        "figures": "figure workdir labels output resamples seed",
        "compare": "config workdir only",
        "gallery": "model name engine index batch k json gallery query",
        "serve": "host port",
    }.items()
}
BASES = {
    program: tuple(arguments.split())
    for program, arguments in {
        "main": "--config=tests/smallworld.py:{world} --workdir={place}/run",
        "pretrain": "--config=configs/pretrain_glyphs.py --workdir={place}/model "
        "--config.classes=2 --config.train.epochs=1",
        "evaluate": "--models={world}/run/tasks/0,{world}/run/tasks/1 "
        "--gallery=folder:{world}/open --gallery_split=test --query_split=train "
        "--output={place}/evaluation.json",
        "import_torch": "--checkpoint={world}/file --backbone=resnet18 --output={place}/model",
        "export_torch": "--checkpoint={world}/run/tasks/0 --output={place}/model.safetensors",
        "figures": "--figure=losses --workdir={world}/run --output={place}/figures",
        "compare": "--config=configs/compare_glyphs.py --workdir={place}/comparison --only=",
        "gallery": "init {place}/gallery --model={world}/run/tasks/0",
        "serve": "{world}/empty",
    }.items()
}
VERBS = [
    "init",
    "add",
    "remove",
    "search",
    "status",
    "gate",
    "canary",
    "promote",
    "backfill",
    "pause",
    "rollback",
    "retire",
    "verify",
    "backup",
    "nonsense",
]
ENVIRONMENTS = (
    {"HOME": None},
    {"HOME": "/dev/null/home"},
    {"HOME": "/proc", "XDG_CACHE_HOME": None},
    {"HOME": "{place}/[home]*"},
    {"TMPDIR": "/dev/null/tmp"},
    {"TMPDIR": "{place}/[tmp]"},
    {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "xx_YY.UTF-8"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1:strict"},
    {"TERM": "dumb", "COLUMNS": "1"},
    {"COLUMNS": "none", "LINES": "-3", "NO_COLOR": "1"},
    {"FORCE_COLOR": "1", "COLUMNS": "20"},
    {"TFDS_DATA_DIR": "~/sets"},
    {"TFDS_DATA_DIR": "/proc/sets"},
    {"JAX_ENABLE_X64": "1"},
    {"JAX_PLATFORMS": "cuda"},
    {"JAX_PLATFORMS": "abacus"},
    {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
    {"JAX_THREEFRY_PARTITIONABLE": "0"},
    {"JAX_DEBUG_NANS": "1"},
    {"JAX_COMPILATION_CACHE_DIR": "/proc/x"},
    {"JAX_NUM_CPU_DEVICES": "3"},
    {"MPLBACKEND": "nonsense"},
    {"MPLBACKEND": "tkagg", "DISPLAY": None},
    {"MPLCONFIGDIR": "/proc/x"},
    {"MPLCONFIGDIR": "{world}/usetex"},
    {"SLURM_JOB_ID": "7"},
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"},
    {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    {"WANDB_MODE": "offline"},
    {"TZ": "Nowhere/None"},
    {"USER": None, "LOGNAME": None, "SHELL": None, "PATH": ""},
)
OF_A_START = ("LANG", "LC_", "PYTHON", "JAX_", "MPL")  # read while Python or a library is loaded


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run, and what is wrong with directories."""
    world = tmp_path_factory.mktemp("world")
    smallworld.write_images(world)
    with Starter() as start:
        ended = start(
            "main",
            *(part.format(world=world, place=world) for part in BASES["main"]),
            f"--compilation_cache={CACHE}",
        )
        assert ended["status"] == 0, ended["errors"]
        shutil.copytree(world / "run", world / "damaged")
        for path in (world / "damaged").rglob("*"):
            if path.is_file() and path.stat().st_size > 4:
                path.write_bytes(path.read_bytes()[:-3])
        for name in ("empty", "broken/train/a", "broken/test/a", "usetex"):
            (world / name).mkdir(parents=True)
        for split in ("train", "test"):
            (world / "broken" / split / "a" / "1.png").write_bytes(b"\x89PNG")
        (world / "file").write_bytes(b"\x80\x05 nothing of ours")
        (world / "loop").symlink_to("loop")
        (world / "usetex" / "matplotlibrc").write_text("text.usetex: True\n")
        for name in ("[odd]", os.fsdecode(b"bytes\xff")):
            shutil.copytree(world / "open", world / name)
        yield world, start


def fields(config, prefix=""):
    """The names of all fields of a configuration, dotted."""
    for name, value in config.items():
        yield from (
            fields(value, f"{prefix}{name}.") if hasattr(value, "items") else (prefix + name,)
        )


FIELDS = {
    "main": tuple(fields(default())),
    "pretrain": tuple(fields(default_pretrain())),
}


def make_case(number):
    """A program, its arguments and how it is started; what is in braces is filled in later."""
    rng = np.random.default_rng([SEED, number])

    def one(values):
        return values[int(rng.integers(len(values)))]

    program = one((*FLAGS, "main"))
    arguments, request = list(BASES[program]), {}
    if program == "gallery" and rng.random() < 0.8:
        arguments = [one(VERBS), one((*PATHS, "{place}/gallery"))]
        arguments += [one(ANY) for _ in range(int(rng.integers(3)))]
    for _ in range(int(rng.integers(3))):
        what = rng.random()
        if what < 0.35 and program in FIELDS:
            name = one(FIELDS[program])
            name = one((name, name, name, name + "[0]", name + "[9]", name + ".x", name[:-1]))
            arguments.append(f"--config.{name}={one(ANY)}")
        elif what < 0.75:
            arguments.append(f"--{one(FLAGS[program])}={one(ANY)}")
        elif what < 0.85:
            arguments.append(
                one((*VALUES, "--nonsense", "--help", "--helpfull", "--noconfig", "-x"))
            )
        elif arguments:
            arguments.pop(int(rng.integers(len(arguments))))
    if rng.random() < 0.5 or number % FRESH == 0:
        environment = one(ENVIRONMENTS)
        # What is read at a start is no use to a process that has started.
        if number % FRESH == 0 or not any(name.startswith(OF_A_START) for name in environment):
            request["environment"] = environment
    if rng.random() < 0.3:
        request["output"] = one(("full", "closed", "terminal"))
    elif rng.random() < 0.2:
        request["encoding"] = one(("ascii", "latin-1", "utf-16"))
    if rng.random() < 0.2:
        request["directory"] = one(("/", "/proc", "{world}/empty", "{place}"))
    return program, arguments, request


def started_fresh(program, arguments, request):
    """As `Starter`, by a process that imports all in its environment."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    for name, value in request.get("environment", {}).items():
        environment.pop(name, None)
        environment |= {} if value is None else {name: value}
    output = subprocess.PIPE
    if request.get("output") == "full":
        output = os.open("/dev/full", os.O_WRONLY)
    command = [sys.executable, f"{ROOT}/launch/{program}.py", *map(os.fsencode, arguments)]
    try:
        ended = subprocess.run(
            command,
            env=environment,
            cwd=request.get("directory", ROOT),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"status": "limit", "errors": "", "output": ""}
    finally:
        if output != subprocess.PIPE:
            os.close(output)
    return {
        "status": ended.returncode,
        "errors": ended.stderr.decode(errors="replace"),
        "output": (ended.stdout or b"").decode(errors="replace"),
    }


def faults(ended):
    """What is wrong with how a program ended."""
    errors, printed = ended["errors"], ended["errors"] + ended["output"]
    lines = [line for line in errors.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error: ") or ": error: " in line]
    for mark in ("Traceback (most recent", "Fatal Python error", "MarkupError", "core dumped"):
        if mark in printed:
            yield mark
    if ended["status"] not in STATUSES:
        yield f"status {ended['status']}"
    if ended["status"] == 2 and len(told) != 1:
        yield f"{len(told)} lines of error"
    if ended["status"] == 2 and len(lines) > 40:  # the usage of argparse is some lines
        yield f"{len(lines)} lines on standard error"


def test_programs_end_in_one_line(world, tmp_path):
    world, start = world
    ended_so, failed = collections.Counter(), []
    only = os.environ.get("FUZZ_ONLY")
    numbers = [int(number) for number in only.split(",")] if only else range(CASES)
    for number in numbers:
        program, arguments, request = make_case(number)
        place = tmp_path / str(number)
        for name in (".", "[home]*", "[tmp]"):
            (place / name).mkdir(exist_ok=True)

        def fill(text):
            return text.replace("{world}", str(world)).replace("{place}", str(place))  # noqa: B023

        arguments = [fill(argument) for argument in arguments]
        if program in FIELDS and not any("compilation_cache" in a for a in arguments):
            arguments.append(f"--compilation_cache={CACHE}")
        if program == "main":
            arguments.insert(1, f"--config.replacements.directory={world}/models")
        request = {name: fill(v) if isinstance(v, str) else v for name, v in request.items()}
        environment = request.get("environment", {})
        request["environment"] = {n: v and fill(v) for n, v in environment.items()}
        before = {path.name for path in ROOT.iterdir()}
        if number % FRESH == 0:
            ended = started_fresh(program, arguments, request)
        else:
            ended = start(program, *arguments, limit=LIMIT, **request)
            if ended["status"] == -9 and ended["seconds"] > LIMIT - 1:
                ended["status"] = "limit"
        wrong = list(faults(ended)) if ended["status"] != "limit" else []
        made = {path.name for path in ROOT.iterdir()} - before - {"runs", ".cache", "__pycache__"}
        wrong += [f"made {name!r}" for name in made if name.startswith(("~", "$"))]
        ended_so[ended["status"]] += 1
        if wrong:
            failed.append(number)
            print(f"\n--- case {number}: {', '.join(wrong)}; status {ended['status']}")
            print(f"{program} {arguments!a}\n{request!a}\n{ended['errors'][-3000:]}")
        shutil.rmtree(place)
    print(f"\n{len(numbers)} cases of seed {SEED}, by status: {dict(ended_so)}; failed: {failed}")
    assert not failed

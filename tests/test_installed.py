"""The commands of an installed wheel, in an environment of its own without the checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest
from gallery_models import save_model
from gallery_world import write_images

ROOT = pathlib.Path(__file__).parents[1]


def run(*command, cwd=None):
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    command = [str(part) for part in command]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


def checked(*command, cwd=None):
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """The directory of the commands of a fresh environment; it shares the dependencies here."""
    pytest.importorskip("setuptools", reason="builds the wheel")
    place = tmp_path_factory.mktemp("installed")
    source = place / "source"
    shutil.copytree(
        ROOT / "iamcl2r_jax", source / "iamcl2r_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    checked(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", place, source)
    (wheel,) = place.glob("*.whl")
    checked(sys.executable, "-m", "venv", "--without-pip", place / "env")
    python = place / "env" / "bin" / "python"
    inside = checked(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    checked(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    # The name comes last, so that the environment's own package is the one that is found.
    shared = pathlib.Path(inside) / "zz_dependencies.pth"
    shared.write_text(sysconfig.get_path("purelib") + "\n")
    where = checked(
        python, "-c", "import iamcl2r_jax; print(iamcl2r_jax.__file__)", cwd=place
    ).strip()
    assert pathlib.Path(where).is_relative_to(inside)
    return place / "env" / "bin"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("iamcl2r-gallery", "searched by every later compatible model"),
        ("iamcl2r-serve", "over HTTP"),
        ("iamcl2r-evaluate", "--models"),
        ("iamcl2r-import-torch", "--checkpoint"),
    ],
)
def test_each_command_says_what_it_is(tmp_path, commands, command, says):
    done = run(commands / command, "--help", cwd=tmp_path)
    assert says in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr


def test_bad_input_ends_with_status_2_and_one_line(tmp_path, commands):
    for command in (
        ["iamcl2r-gallery", "status", "nowhere"],
        ["iamcl2r-import-torch", "--checkpoint=no.pt", "--backbone=resnet18", "--output=out"],
    ):
        done = run(commands / command[0], *command[1:], cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_gallery_is_made_filled_and_searched_by_commands(tmp_path, commands):
    save_model(tmp_path / "model", 1)
    write_images(tmp_path / "images", 6)
    gallery = commands / "iamcl2r-gallery"
    checked(gallery, "init", "g", "--model", "model", cwd=tmp_path)
    assert checked(gallery, "add", "g", "images", cwd=tmp_path) == "added: 6\n"
    image = "class1/4.png"
    found = checked(gallery, "search", "g", f"images/{image}", "-k", "1", cwd=tmp_path)
    assert image in found.splitlines()[1]
    assert "all is as it was written" in checked(gallery, "verify", "g", "--files", cwd=tmp_path)

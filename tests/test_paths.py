"""Paths as people write them."""

import os

import pytest

from iamcl2r_jax.system import files, paths, runtime
from iamcl2r_jax.system.errors import InputError


def test_a_leading_tilde_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert paths.expand("~/run") == "/somewhere/run"
    assert paths.expand("a/~/run") == "a/~/run"
    with pytest.raises(InputError, match=r"^~nobody-of-that-name/run: there is no such home"):
        paths.expand("~nobody-of-that-name/run")


def test_without_a_home_directory_nothing_is_called_tilde(monkeypatch, tmp_path):
    """As for a user of a container whom no database knows, without HOME."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    before = runtime.jax.config.jax_compilation_cache_dir
    runtime.enable_compilation_cache()
    assert runtime.jax.config.jax_compilation_cache_dir == before
    refused = pytest.raises(InputError, match=r"^~/run: must be written out, without ~")
    with refused, files.one_writer("~/run"):
        pass
    assert not list(tmp_path.iterdir())

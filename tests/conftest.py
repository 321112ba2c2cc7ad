"""Settings shared by all tests."""

import pathlib

import jax

from iamcl2r_jax.system import runtime

jax.config.update("jax_numpy_rank_promotion", "raise")
# A second `make test` need not compile again.
runtime.enable_compilation_cache(str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))

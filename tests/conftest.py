"""Settings shared by all tests."""

import os
import pathlib

# Several processes of tests would each reserve most of a GPU, and tolerances are float32's, not
# TF32's; JAX_PLATFORMS=cuda tries all the same.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs of tests run for a moment: with less optimisation by LLVM they are compiled sooner.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=1 {os.environ.get('XLA_FLAGS', '')}"

import jax

from iamcl2r_jax.system import runtime

jax.config.update("jax_numpy_rank_promotion", "raise")
# A second `make test` need not compile again.
runtime.enable_compilation_cache(str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # most are small

"""What the programs without absl's flags do before they use JAX."""


def prepare_jax() -> None:
    """Keeps compiled programs between starts, and libraries from logging what we say ourselves."""
    import jax
    from absl import logging

    from iamcl2r_jax.system import runtime

    logging.set_verbosity(logging.FATAL)  # what goes wrong is one line of ours
    if jax.config.jax_compilation_cache_dir is None:  # JAX_COMPILATION_CACHE_DIR names another
        runtime.enable_compilation_cache()

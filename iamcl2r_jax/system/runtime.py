"""What a run notes about the machine: versions, device, time spent compiling."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import jax
from jax import monitoring

from iamcl2r_jax.system import paths
from iamcl2r_jax.system.errors import InputError

_PACKAGES = (
    "iamcl2r_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "numpy",
)
# Lowering and compilation proper; tracing is left out, since nested traces are reported twice.
_COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in _PACKAGES}


_NUMERICS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_default_matmul_precision",
)


def numerics() -> dict[str, Any]:
    """How JAX is set to compute and to draw random numbers; other settings give other results."""
    return {name: getattr(jax.config, name) for name in _NUMERICS}


def environment() -> dict:
    """Versions, numerics and devices, for results.json."""
    device = jax.devices()[0]
    return {
        "numerics": numerics(),
        "versions": versions(),
        "platform": platform.platform(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
            "cpu_cores": os.cpu_count(),
        },
    }


def enable_compilation_cache(directory: str | None = None) -> None:
    """Keeps compiled programs in `directory`, so that the next start need not compile them.

    With "" there is no cache; None is `paths.CACHE`, or no cache if there is no home directory.
    Raises `InputError` if JAX cannot be given the name.
    """
    if directory is None:
        directory = os.path.expanduser(paths.CACHE)
        directory = "" if directory.startswith("~") else directory
    if not directory:
        return
    try:
        directory.encode()
    except UnicodeEncodeError:
        raise InputError(f"compilation_cache={directory!a}: must be a Unicode path") from None
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


class Clock:
    """Wall-clock `seconds` of consecutive stages, by name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        """Ends a stage, which began where the one before it ended."""
        now = time.monotonic()
        self.seconds[stage] = now - self._last
        self._last = now


@contextmanager
def measure_compilation() -> Iterator[SimpleNamespace]:
    """Counts, as `seconds`, the time that JAX spends lowering and compiling inside the block."""
    clock = SimpleNamespace(seconds=0.0)

    def listen(event: str, seconds: float, **_) -> None:
        if event in _COMPILE_EVENTS:
            clock.seconds += seconds

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield clock
    finally:
        monitoring.unregister_event_duration_listener(listen)

"""What all tests run under."""

import atexit
import os
import shutil
import tempfile

# Before jax is imported; a machine with an accelerator runs its own tests with JAX_PLATFORMS set.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile more than they compute. LLVM does less work for them, except for modules that say
# `COMPILED_AS_USERS_DO = True`; and what one process has compiled, here or in the programs that tests start, the others
# take from it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# A module in one piece: a tenth less work, where other tests keep the other cores busy.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_parallel_codegen_split_count=1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest

pytest_plugins = ("object_stores", "short_runs", "web_servers")

# Meshes of up to eight devices in this process; not by XLA_FLAGS, which the programs that tests start would inherit.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module", autouse=True)
def _optimisations(request):
    """All of XLA's and LLVM's optimisations for a module that asks for them."""
    if not getattr(request.module, "COMPILED_AS_USERS_DO", False):
        yield
        return
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    quick = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(params=["cpu", "cuda"])
def each_platforms_code(request, monkeypatch):
    """Runs a test once more with what `jax.lax.platform_dependent` would take on a GPU; it all runs on a CPU, too."""

    def choose(*arguments, default=None, **functions):
        return functions.get(request.param, default)(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    jax.clear_caches()
    yield request.param
    jax.clear_caches()

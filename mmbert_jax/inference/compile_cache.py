"""Compiled programs that outlive the process that made them."""

import os
from pathlib import Path

import jax

from mmbert_jax.places import Place, absolute


def use_compile_cache(folder: str | Place | None = None) -> Place | None:
    """Keeps compiled programs, so that the next process with the same shapes does not compile them again.

    To be called before anything is compiled.

    Args:
      folder: None takes $JAX_COMPILATION_CACHE_DIR, or else `mmbert_jax/compiled` in the user's cache folder.

    Returns:
      The folder; None, and nothing is kept, for a user who has none.
    """
    folder = folder or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder:
        try:
            caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except (
            RuntimeError
        ):  # a user without HOME and without an entry in passwd, as in many containers
            return None
        folder = Path(caches) / "mmbert_jax" / "compiled"
    folder = absolute(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder

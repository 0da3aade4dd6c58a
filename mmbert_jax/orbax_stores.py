"""Lets orbax read and write s3:// as it does gs://, which is the only store that it hands to tensorstore as one.

And of either by tensorstore's usual way with this project's patience, see `buckets.RETRIES`.
"""

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from mmbert_jax.buckets import kvstore_spec
from mmbert_jax.places import is_remote


def let_orbax_reach_stores() -> None:
    """Replaces the three functions by which orbax 0.12 tells a bucket from a disk; it has no option for that.

    Raises:
      AttributeError: this version of orbax has no such functions.
    """
    normalize, is_gs = tensorstore_utils._normalize_path, tensorstore_utils._use_gcs_driver
    tensorstore_utils._normalize_path = lambda path: (
        path.rstrip("/") if is_remote(path) else normalize(path)
    )
    tensorstore_utils._use_gcs_driver = lambda path: is_remote(path) or is_gs(path)
    gcs_utils.get_kvstore_for_gcs = kvstore_spec

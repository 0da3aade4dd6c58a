"""Vectors in fewer bytes are those of Sentence Transformers, whose searches read them."""

from pathlib import Path

import numpy as np
import pytest
from peers import run_under

from mmbert_jax.errors import UserError
from mmbert_jax.inference.quantise import quantise

SCRIPT = Path(__file__).parents[1] / "hf" / "scripts" / "quantise.py"


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 48)).astype(np.float32) * rng.uniform(0.1, 9, 48)
    return vectors.astype(np.float32)


@pytest.fixture(scope="module")
def ranges(given):
    """Narrower than the vectors are."""
    return np.stack([given.min(axis=0), given.max(axis=0)]) * np.float32(0.8)


@pytest.fixture(scope="module")
def theirs(given, ranges, tmp_path_factory):
    work = tmp_path_factory.mktemp("quantised")
    np.savez(work / "vectors.npz", vectors=given, ranges=ranges)
    run_under("sentence-transformers", SCRIPT, work)
    return np.load(work / "theirs.npz")


@pytest.mark.parametrize("output", ["int8", "uint8", "binary", "ubinary"])
def test_as_sentence_transformers(output, given, theirs):
    ours = quantise(given, output)
    assert ours.dtype == theirs[output].dtype
    np.testing.assert_array_equal(ours, theirs[output])


@pytest.mark.parametrize("output", ["int8", "uint8"])
def test_within_ranges_as_sentence_transformers(output, given, ranges, theirs):
    assert ((given < ranges[0]) | (given > ranges[1])).any()
    np.testing.assert_array_equal(quantise(given, output, ranges), theirs[f"{output}_ranges"])


def test_what_cannot_be_held_is_refused():
    with pytest.raises(UserError, match="beyond float16's 65504"):
        quantise(np.full((1, 8), 1e5, np.float32), "float16")
    with pytest.raises(UserError, match="do not fill up bytes"):
        quantise(np.ones((1, 9), np.float32), "binary")
    with pytest.raises(UserError, match="one vector has no ranges"):
        quantise(np.ones((1, 8), np.float32), "int8")
    with pytest.raises(UserError, match="output is 'int4'"):
        quantise(np.ones((1, 8), np.float32), "int4")

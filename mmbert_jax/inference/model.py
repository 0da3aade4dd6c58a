"""A trained model in the hands of a user: texts in, vectors, tokens or classes out."""

import dataclasses
from collections.abc import Mapping

from jax.sharding import Mesh

from mmbert_jax.data.tokenizer import Tokenizer
from mmbert_jax.hf.sentence_transformers import SentenceModules
from mmbert_jax.inference.classes import predict
from mmbert_jax.inference.masks import fill_mask
from mmbert_jax.inference.tokenise import tokenise
from mmbert_jax.inference.vectors import encode
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import HeadConfig


@dataclasses.dataclass(frozen=True)
class Model:
    """A model with its tokeniser; `mmbert_jax.load` makes it. Nothing of it changes.

    Attributes:
      params: nested dict of float32 arrays, on every device.
      head: what stands on the encoder.
      max_length: tokens of a text, <bos> and <eos> included, beyond which it is cut.
      dtype: in which the model computes, "float32" or "bfloat16"; pooling and probabilities are float32.
      modules: what Sentence Transformers has behind the encoder, in a folder of that library; None elsewhere.
      mesh: over whose data axis rows are spread.
      fingerprint: tells this model from another, or from itself at another step.
    """

    params: Mapping
    config: ModelConfig
    head: HeadConfig
    tokenizer: Tokenizer
    max_length: int
    dtype: str
    modules: SentenceModules | None
    mesh: Mesh
    fingerprint: str

    tokenise = tokenise
    encode = encode
    fill_mask = fill_mask
    predict = predict

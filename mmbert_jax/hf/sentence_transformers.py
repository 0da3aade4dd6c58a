"""What stands behind the encoder of a Sentence Transformers model: pooling, dense layers, normalisation, prompts.

A folder that the library saved has modules.json, which lists its modules (the encoder, whose files lie in the folder
itself, `1_Pooling`, and perhaps `2_Dense` and `3_Normalize`), config_sentence_transformers.json (prompts, similarity)
and sentence_bert_config.json (how texts are read). Formats: versions 2 to 6 of the library,
https://github.com/huggingface/sentence-transformers, `base/model.py` and `base/modules`.

The files themselves go through an import and an export byte for byte, also those that are not understood here; only
computing vectors needs them to be.
"""

import base64
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from mmbert_jax.data.special_tokens import TOKENIZER_CONFIG
from mmbert_jax.errors import UserError
from mmbert_jax.files import check_uploaded
from mmbert_jax.model.heads import ACTIVATIONS, TEXT_POOLINGS
from mmbert_jax.places import Place, files_under, place

MODULES, MODEL, TRANSFORMER = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# What a checkpoint's meta takes of them; a 3072 x 3072 layer has 38 MB.
MAX_BYTES = 64_000_000

# By the name of their class, which is all that the library's versions agree in.
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "Identity": lambda x: x,
    "GELU": ACTIVATIONS["gelu"],
    "ReLU": ACTIVATIONS["relu"],
    "SiLU": ACTIVATIONS["silu"],
    "Sigmoid": jax.nn.sigmoid,
    "Tanh": ACTIVATIONS["tanh"],
}
_FLAG = "pooling_mode_"
# The flags of versions before 5.
_FLAGS = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "lasttoken",
}
# Fields of sentence_bert_config.json that say how the encoder reads texts, with the values that are what this project
# does, too; None stands for a field that may say anything.
_READ_ALIKE: dict[str, Sequence[Any] | None] = {
    "max_seq_length": None,
    "do_lower_case": (False, None),
    "transformer_task": ("feature-extraction",),
    "modality_config": (
        {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        None,
    ),
    "module_output_name": ("token_embeddings", None),
    "unpad_inputs": None,
}


@dataclasses.dataclass(frozen=True)
class Dense:
    """A layer on vectors: activation(x W^T + b).

    Attributes:
      weight: float32 [out, in]. bias: float32 [out], or None.
      activation: the name of its class in torch.nn, "Identity", "Tanh", "GELU", ...
    """

    weight: np.ndarray
    bias: np.ndarray | None
    activation: str


@dataclasses.dataclass(frozen=True)
class SentenceModules:
    """What becomes of hidden states, in this order: `pooling`, `dense`, `normalise`, the first `truncate_dim` values.

    Attributes:
      width: of the hidden states.
      pooling: one of `model.heads.TEXT_POOLINGS`.
      prompts: what is put in front of a text, by its name ("query", "document", ...).
      default_prompt: the name of the one that is taken where none is asked for; None: none.
      similarity: one of `SIMILARITIES`, which its authors compare vectors by.
      max_length: tokens of a text, specials included, beyond which it is cut; None: what the model can read.
      truncate_dim: how many values of a vector are kept; they are not normalised again. None: all.
    """

    width: int
    pooling: str
    dense: tuple[Dense, ...] = ()
    normalise: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str = "cosine"
    max_length: int | None = None
    truncate_dim: int | None = None


def read_modules(folder: str | Place) -> SentenceModules | None:
    """The modules of a Hugging Face folder; None where it has none, being no Sentence Transformers model.

    Raises:
      UserError: a module, a pooling or a setting that is not known here, or a damaged file; names the file and field.
    """
    folder = place(folder)
    files = module_files(folder)
    if files is None:
        return None
    return _parse(files, max_length(folder, files), str(folder))


def recorded_modules(meta: Mapping) -> SentenceModules | None:
    """The modules that a checkpoint's meta holds (see `record_modules`): those of the folder that was imported.

    None, too, where the model has become narrower since than they are.

    Raises:
      UserError: as `read_modules`.
    """
    files = recorded_files(meta)
    if not files or width(files) not in (meta["config"]["model"]["hidden_size"], None):
        return None
    found = meta["imported"]["sentence_transformers"]
    return _parse(files, found["max_length"], found["folder"])


def apply_modules(modules: SentenceModules, vectors: jax.Array) -> jax.Array:
    """Pooled vectors [N, D] -> the model's vectors float32 [N, E]: dense layers and normalisation, at full precision.

    Cutting them to `truncate_dim` is left to the caller, who may want another number of values.

    Raises:
      UserError: D is not the width that the modules are for.
    """
    if vectors.shape[-1] != modules.width:
        raise UserError(
            f"the Sentence Transformers modules are for vectors of {modules.width} values; the model's have"
            f" {vectors.shape[-1]}"
        )
    x = jnp.asarray(vectors, jnp.float32)
    for layer in modules.dense:
        x = jnp.matmul(x, layer.weight.T, precision="highest")
        if layer.bias is not None:
            x = x + layer.bias
        x = _ACTIVATIONS[layer.activation](x)
    if modules.normalise:
        # As torch.nn.functional.normalize, which leaves a vector of zeros as it is.
        x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return x


def module_files(folder: str | Place) -> dict[str, bytes] | None:
    """All files that make a folder a Sentence Transformers model, by their path in it; None where it is none.

    Raises:
      UserError: modules.json is damaged or names a folder elsewhere, or there are more than `MAX_BYTES` of them.
    """
    folder = place(folder)
    check_uploaded(folder)
    if not (folder / MODULES).is_file():
        return None
    names = [name for name in (MODULES, MODEL, TRANSFORMER) if (folder / name).is_file()]
    files = {name: (folder / name).read_bytes() for name in names}
    for _, path in _listed(files, str(folder)):
        if path and (folder / path).is_dir():
            for file in files_under(folder / path):
                files[f"{path}/{str(file)[len(str(folder / path)) + 1 :]}"] = file.read_bytes()
    if (size := sum(map(len, files.values()))) > MAX_BYTES:
        raise UserError(
            f"{folder / MODULES}: its modules have {size / 1e6:.0f} MB besides the encoder, more than"
            f" {MAX_BYTES / 1e6:.0f}; to go on without them, take {MODULES} out of the folder"
        )
    return files


def write_modules(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes what `module_files` read into a folder with an encoder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def record_modules(folder: Place, files: Mapping[str, bytes]) -> dict[str, Any]:
    """What a checkpoint's meta keeps of a folder's modules: JSON as text, weights in base64."""
    kept = {}
    for name, data in files.items():
        try:
            kept[name] = {"text": data.decode()}
        except UnicodeDecodeError:
            kept[name] = {"base64": base64.b64encode(data).decode()}
    return {"folder": str(folder), "max_length": max_length(folder, files), "files": kept}


def recorded_files(meta: Mapping) -> dict[str, bytes]:
    """The files of the `record_modules` in a checkpoint's meta; none where it has none."""
    found = (meta.get("imported") or {}).get("sentence_transformers") or {"files": {}}
    return {
        name: kept["text"].encode() if "text" in kept else base64.b64decode(kept["base64"])
        for name, kept in found["files"].items()
    }


def same_modules(ours: Mapping[str, bytes], theirs: Mapping[str, bytes]) -> bool:
    """Whether two models' modules compute the same of the same hidden states; prompts are not looked at."""
    try:
        a, b = (_parse(files, None, MODULES) for files in (ours, theirs))
    except UserError:  # what is not understood has to be equal as it is
        a, b = (
            {name: data for name, data in files.items() if name not in (MODEL, TRANSFORMER)}
            for files in (ours, theirs)
        )
        return a == b
    if (a.width, a.pooling, a.normalise) != (b.width, b.pooling, b.normalise):
        return False
    layers = zip(a.dense, b.dense, strict=False)
    return len(a.dense) == len(b.dense) and all(
        x.activation == y.activation
        and np.array_equal(x.weight, y.weight)
        and (x.bias is None) == (y.bias is None)
        and (x.bias is None or np.array_equal(x.bias, y.bias))
        for x, y in layers
    )


def width(files: Mapping[str, bytes]) -> int | None:
    """Of the vectors that the modules pool, None where they pool none."""
    for kind, path in _listed(files, MODULES):
        if kind == "Pooling":
            return _width(_json(files, f"{path}/config.json", MODULES))
    return None


def max_length(folder: Place, files: Mapping[str, bytes]) -> int | None:
    """After how many tokens the library cuts a text of this folder; None where the encoder's own limit is the only one.

    It goes by sentence_bert_config.json, or else by the tokeniser's own limit.
    """
    found = _json(files, TRANSFORMER, str(folder)).get("max_seq_length")
    if found is None and (path := folder / TOKENIZER_CONFIG).is_file():
        own = _json({TOKENIZER_CONFIG: path.read_bytes()}, TOKENIZER_CONFIG, str(folder))
        found = own.get("model_max_length")
        if isinstance(found, int | float) and found > 1e9:  # 1e30: "none"
            return None
    if found is not None and (not isinstance(found, int) or isinstance(found, bool) or found < 2):
        raise UserError(
            f"{folder}: max_seq_length is {found!r}; it has to be a number of tokens, 2 or more"
        )
    return found


def _parse(files: Mapping[str, bytes], max_length: int | None, where: str) -> SentenceModules:
    _check_settings(files, where)
    modules = _listed(files, where)
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or modules[0][1]:
        raise UserError(
            f"{where}: {MODULES} lists {', '.join(kinds)}; the first has to be the Transformer whose files lie in the"
            " folder itself, the second a Pooling"
        )
    pooling, width = _pooling(files, f"{modules[1][1]}/config.json", where)
    dense: list[Dense] = []
    normalise = False
    for kind, path in modules[2:]:
        if kind == "Dropout":
            continue  # does nothing but in training
        if kind == "Normalize":
            normalise = True
        elif kind == "Dense" and not normalise:
            dense.append(_dense(files, path, dense[-1].weight.shape[0] if dense else width, where))
        else:
            raise UserError(
                f"{where}: {MODULES} has a {kind} {'behind a Normalize' if normalise else ''}".rstrip()
                + "; only Dense layers, and after them Normalize, are read behind the Pooling"
            )
    own = _json(files, MODEL, where)
    prompts = {name: text or "" for name, text in (own.get("prompts") or {}).items()}
    default = own.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise UserError(
            f"{where}: {MODEL}: default_prompt_name is {default!r}, and prompts has {sorted(prompts)}"
        )
    similarity = own.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise UserError(
            f"{where}: {MODEL}: similarity_fn_name is {similarity!r}; it has to be one of {', '.join(SIMILARITIES)}"
        )
    return SentenceModules(
        width,
        pooling,
        tuple(dense),
        normalise,
        prompts,
        default,
        similarity,
        max_length,
        own.get("truncate_dim"),
    )


def _check_settings(files: Mapping[str, bytes], where: str) -> None:
    kind = _json(files, MODEL, where).get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise UserError(
            f"{where}: {MODEL}: model_type is {kind!r}; only a SentenceTransformer has one vector a text"
        )
    for field, value in _json(files, TRANSFORMER, where).items():
        alike = _READ_ALIKE.get(field, (None, {}, []))
        if alike is not None and value not in alike:
            raise UserError(f"{where}: {TRANSFORMER}: {field} is {value!r}, which is not supported")


def _listed(files: Mapping[str, bytes], where: str) -> list[tuple[str, str]]:
    """Class and path of each module, in order; the path of what lies in the folder itself is ""."""
    modules = _json(files, MODULES, where, list)
    try:
        listed = [(str(m["type"]).rpartition(".")[2], str(m["path"])) for m in modules]
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{where}: {MODULES} is not a list of modules with type and path ({error!r})"
        ) from error
    for _, path in listed:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts or "\\" in path:
            raise UserError(f"{where}: {MODULES} names {path!r}, which is no folder inside it")
    return listed


def _pooling(files: Mapping[str, bytes], name: str, where: str) -> tuple[str, int]:
    fields = _json(files, name, where)
    modes = fields.get("pooling_mode")
    if modes is None:
        set_flags = [mode for flag, mode in _FLAGS.items() if fields.get(_FLAG + flag)]
        modes = set_flags or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in TEXT_POOLINGS:
        raise UserError(
            f"{where}: {name}: pooling_mode is {' and '.join(map(str, modes))}; only one of"
            f" {', '.join(TEXT_POOLINGS)} is read"
        )
    if not fields.get("include_prompt", True):
        raise UserError(
            f"{where}: {name}: include_prompt is false; prompts are always pooled with the text here"
        )
    width = _width(fields)
    if not isinstance(width, int) or width < 1:
        raise UserError(
            f"{where}: {name}: embedding_dimension is {width!r}; it has to be a number of values"
        )
    return modes[0], width


def _width(fields: Mapping[str, Any]) -> Any:
    return fields.get("embedding_dimension", fields.get("word_embedding_dimension"))


def _dense(files: Mapping[str, bytes], path: str, width: int, where: str) -> Dense:
    name, weights = f"{path}/config.json", f"{path}/model.safetensors"
    fields = _json(files, name, where)
    inputs = fields.get("module_input_name", "sentence_embedding")
    outputs = fields.get("module_output_name") or inputs
    if fields.get("use_residual") or (inputs, outputs) != ("sentence_embedding",) * 2:
        raise UserError(
            f"{where}: {name}: use_residual, module_input_name or module_output_name is set; only layers on the"
            " pooled vector are read"
        )
    activation = str(fields.get("activation_function", "Tanh"))
    called = activation.rpartition(".")[2]
    if called not in _ACTIVATIONS or ("." in activation and not activation.startswith("torch.nn.")):
        raise UserError(
            f"{where}: {name}: activation_function is {activation!r}; one of torch.nn's"
            f" {', '.join(_ACTIVATIONS)} is read"
        )
    if weights not in files:
        raise UserError(
            f"{where}: {weights} is missing; pickled weights are not opened: load the model with the library where you"
            " trust it and save it again, which writes safetensors"
        )
    try:
        tensors = {key: x.astype(np.float32) for key, x in load(files[weights]).items()}
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{where}: {weights} cannot be read ({error}); copy it again") from error
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    outputs = fields.get("out_features")
    expected = {"linear.weight": (outputs, width)}
    if fields.get("bias", True):
        expected["linear.bias"] = (outputs,)
    if {key: x.shape for key, x in tensors.items()} != expected:
        raise UserError(
            f"{where}: {weights} has { ({key: x.shape for key, x in tensors.items()}) }; {name} and the modules before"
            f" ask for {expected}"
        )
    return Dense(weight, bias, called)


def _json(files: Mapping[str, bytes], name: str, where: str, kind: type = dict) -> Any:
    """A file's content; {} for one that is not there, which the library allows."""
    if name not in files:
        return kind()
    try:
        value = json.loads(files[name].decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{where}: {name} is not JSON ({error})") from error
    if not isinstance(value, kind):
        raise UserError(f"{where}: {name} does not hold a JSON {kind.__name__}")
    return value

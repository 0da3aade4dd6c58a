"""Finding the tokeniser that a checkpoint was trained with."""

from collections.abc import Mapping

from mmbert_jax.data.tokenizer import Tokenizer, load_tokenizer
from mmbert_jax.data.tokenizer_identity import is_recorded, same_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.places import Place, place


def checkpoint_tokenizer(meta: Mapping, path: str | Place | None = None) -> Tokenizer:
    """The tokeniser at `path`, or the copy that lies in the corpus (or imported model) of the checkpoint.

    Args:
      meta: of a checkpoint; `meta["tokenizer"]` says which tokeniser it has to be.
      path: folder or file of a tokeniser; None looks where the checkpoint says.

    Raises:
      UserError: there is none, or it is not the one that the checkpoint was trained with.
    """
    candidates = [place(path)] if path else _places(meta)
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        looked = ", ".join(map(str, candidates)) or "nowhere: the checkpoint names no corpus"
        raise UserError(f"no tokeniser found (looked at {looked}); give it with --tokenizer DIR")
    tokenizer = load_tokenizer(found)
    expected = meta.get("tokenizer")
    if not is_recorded(tokenizer.path, tokenizer.sha256, expected):
        raise UserError(
            f"the tokeniser {found} (sha256 {tokenizer.sha256[:12]}...) is not the one that the checkpoint was"
            f" trained with ({expected['sha256'][:12]}...); give that one with --tokenizer DIR"
        )
    used = {"special_ids": tokenizer.special.to_dict()}
    if not same_tokenizer(used, expected):
        raise UserError(
            f"the tokeniser {found} begins, ends or masks texts with other tokens ({used['special_ids']}) than the"
            f" checkpoint was trained with ({expected['special_ids']}); give the folder of that one, whose files name"
            " them, with --tokenizer DIR"
        )
    return tokenizer


def _places(meta: Mapping) -> list[Place]:
    """Where the tokeniser may lie: what an import recorded, the corpus, or the corpus of each source."""
    places = []
    if recorded := (meta.get("tokenizer") or {}).get("path"):
        places.append(place(recorded))
    if corpus := meta.get("config", {}).get("data", {}).get("corpus"):
        sources = sorted(meta["config"]["data"].get("sources", {}))
        places += [
            place(corpus) / "tokenizer",
            *(place(corpus) / source / "tokenizer" for source in sources),
        ]
    return places

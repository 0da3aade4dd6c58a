"""The language that a file's path tells."""

import re

from mmbert_jax.errors import UserError
from mmbert_jax.places import Place

_FIELD = "{language}"


def check_pattern(pattern: str) -> str:
    """UserError unless a pattern says where the language stands."""
    if pattern.count(_FIELD) != 1:
        raise UserError(
            f"--language_from_path {pattern!r}: has to contain {_FIELD} once, as in 'data/{_FIELD}/train'"
        )
    return pattern


def path_language(pattern: str, path: Place) -> str:
    """What stands in a path where a pattern has `{language}`: deu_Latn in data/deu_Latn/train/0.gz by data/{language}.

    Whole names are compared, anywhere in the path, the last place if there are several; `*` stands for any part of a
    name.

    Raises:
      UserError: nowhere in the path.
    """
    parts = (re.escape(part).replace(r"\*", "[^/]*") for part in pattern.strip("/").split(_FIELD))
    found = re.findall(f"(?=/{'([^/]+?)'.join(parts)}(?:/|$))", f"/{path}")
    if not found:
        raise UserError(f"{path}: --language_from_path {pattern!r} is nowhere in this path")
    return found[-1]

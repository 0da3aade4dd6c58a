"""One account of what decides a phase's data: config, tokeniser, the corpora's rows, and the order around a row.

It is printed at the start, kept in every checkpoint, and compared when a run goes on and between the processes of a
job. A nested dict of JSON values, detailed enough that `difference` can name what is another one:

  digest     of all that follows, in 16 hexadecimal digits
  config     digest of the fields that a run keeps for life
  tokenizer  its record (data/tokenizer_identity.py)
  corpora    of each its name, language -> [rows, tokens, share of the phase's rows in billionths], digests of shards
  order      from global row `row` on: a running digest at each of the next rows, and digests of the first records
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mmbert_jax.config import decisive_fields
from mmbert_jax.data.corpus import Manifest, trained_part
from mmbert_jax.data.pipeline import PhaseData, find_corpora
from mmbert_jax.data.tokenizer_identity import same_tokenizer, short
from mmbert_jax.errors import UserError

Account = dict[str, Any]

# Rows whose order is compared, and how many of them are compared byte by byte.
ROWS, RECORDS = 1024, 4
# Digests of shards that an account holds at most; in a larger corpus one stands for several.
SHARD_DIGESTS = 1024
# What a share may be off by, in billionths: machines round powers differently.
SHARE_TOLERANCE = 10
NAMED = 5  # differences that a message names


def fingerprint(config: ConfigDict, data: PhaseData, row: int) -> Account:
    """The account of a phase's data, seen from global row `row`."""
    tokenizer = {
        name: data.tokenizer[name]
        for name in ("sha256", "content", "vocab_size", "special_ids")
        if name in data.tokenizer
    }
    corpora = [
        corpus_account(manifest, data.row_length, "train", SHARD_DIGESTS // len(data.manifests))
        for manifest in data.manifests
    ]
    account = {
        "config": _digest(decisive_fields(config)),
        "tokenizer": tokenizer,
        "corpora": corpora,
        "order": _order(data, row),
    }
    # Bytes of a tokeniser do not count where its content is known, and names of corpora never do.
    counted = account | {
        "tokenizer": tokenizer.get("content", tokenizer["sha256"]),
        "corpora": [{**corpus, "name": ""} for corpus in corpora],
    }
    digest = _digest(counted)
    for corpus in corpora:
        for of_language in corpus["languages"].values():
            of_language.append(0)
    for entry in data.mixture.entries:
        corpora[entry.corpus]["languages"][entry.language][2] = round(entry.share * 1e9)
    return {"digest": digest} | account


def corpus_account(
    manifest: Manifest, row_length: int, split: str, shard_digests: int = SHARD_DIGESTS
) -> Account:
    """What a manifest says of one row length and split: language -> [rows, tokens], and digests of the shards."""
    of_split = manifest["row_lengths"][str(row_length)][split]
    shards = of_split["shards"]
    each = max(1, -(-len(shards) // shard_digests))
    contents = [[shard["rows"], shard.get("digest")] for shard in shards]
    return {
        "name": manifest["source"],
        "languages": {
            language: [entry["rows"], entry["tokens"]]
            for language, entry in of_split["languages"].items()
        },
        "shards": {
            "name": f"{split}_{row_length}",
            "each": each,
            "digests": [_digest(contents[i : i + each], 4) for i in range(0, len(shards), each)],
        },
    }


def held_out_digests(data_config: Mapping) -> dict[str, str]:
    """A digest of the held-out rows of each of a phase's corpora, by the corpora's names in their manifests."""
    _, manifests = find_corpora(data_config)
    accounts = [
        corpus_account(manifest, data_config["row_length"], "held_out") for manifest in manifests
    ]
    return {account.pop("name"): _digest(account) for account in accounts}


def difference(a: Account, b: Account, names: tuple[str, str] = ("before", "now")) -> str | None:
    """What the second account has otherwise than the first, in words; None where the data are the same.

    The config's digest is left out: its fields are compared one by one, and a new one may be added.

    Args:
      names: of the two sides, as they stand behind a value: "90 rows before, 50 now".
    """
    if not same_tokenizer(a["tokenizer"], b["tokenizer"]):
        return (
            f"the corpus was prepared with another tokeniser ({short(a['tokenizer'])} {names[0]},"
            f" {short(b['tokenizer'])} {names[1]})"
        )
    if len(a["corpora"]) != len(b["corpora"]):
        return f"{len(a['corpora'])} corpora {names[0]}, {len(b['corpora'])} {names[1]}"
    for ours, theirs in zip(a["corpora"], b["corpora"], strict=True):
        if found := _corpus_difference(ours, theirs, names):
            return found
    return _order_difference(a["order"], b["order"], names)


def _corpus_difference(a: Account, b: Account, names: tuple[str, str]) -> str | None:
    corpus = f"corpus {b['name']!r}"
    changed = []
    for language in sorted(a["languages"].keys() | b["languages"].keys()):
        ours, theirs = (x["languages"].get(language, [0, 0, 0]) for x in (a, b))
        for i, unit in enumerate(("rows", "tokens")):
            if ours[i] != theirs[i]:
                changed.append(
                    f"{language} ({ours[i]:,} {unit} {names[0]}, {theirs[i]:,} {names[1]})"
                )
                break
    if changed:
        return f"{corpus} has other languages or rows: {_some(changed)}"
    if a["shards"] != b["shards"]:
        return f"{corpus} has the same languages with other text: {_shard_difference(a['shards'], b['shards'])}"
    shares = []
    for language in sorted(a["languages"]):
        ours, theirs = (x["languages"][language][2] for x in (a, b))
        if abs(ours - theirs) > SHARE_TOLERANCE:
            shares.append(
                f"{language} ({ours / 1e7:.5f}% {names[0]}, {theirs / 1e7:.5f}% {names[1]})"
            )
    if shares:
        return f"languages of {corpus} have other shares of the phase's rows: {_some(shares)}"
    return None


def _shard_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    if (a["name"], a["each"], len(a["digests"])) != (b["name"], b["each"], len(b["digests"])):
        return "it is divided into other shards"
    changed = []
    for i, (ours, theirs) in enumerate(zip(a["digests"], b["digests"], strict=True)):
        if ours != theirs:
            first, last = i * a["each"], (i + 1) * a["each"] - 1
            changed.append(f"{a['name']}-{first:05}" + (f" to {last:05}" if last > first else ""))
    return f"shards {_some(changed)}"


def _order(data: PhaseData, row: int) -> Account:
    entries = data.mixture.entries
    places = zip(*(x.tolist() for x in data.order.slice(row, row + ROWS)), strict=True)
    running, digests, records = hashlib.blake2b(digest_size=8), [], []
    for number, (index, pass_number, row_of_language) in enumerate(places):
        entry = entries[index]
        running.update(
            f"{entry.corpus} {entry.language} {pass_number} {row_of_language}\n".encode()
        )
        digests.append(running.hexdigest()[:4])
        if number < RECORDS:
            records.append(_record(data, entry.corpus, entry.first_row + row_of_language))
    return {"row": row, "rows": "".join(digests), "records": records}


def _record(data: PhaseData, corpus: int, row: int) -> str:
    try:
        record = trained_part(data.sources[corpus][row])
        return hashlib.blake2b(record, digest_size=4).hexdigest()
    except UserError:
        # A shard that is damaged ends the run where it is read to train on, not where a checkpoint is written.
        return ""


def _order_difference(a: Account, b: Account, names: tuple[str, str]) -> str | None:
    if a["row"] != b["row"]:
        return f"they stand at row {a['row']} {names[0]}, {b['row']} {names[1]}"
    for i in range(0, min(len(a["rows"]), len(b["rows"])), 4):
        if a["rows"][i : i + 4] != b["rows"][i : i + 4]:
            return (
                f"from global row {a['row'] + i // 4} of the phase on the order of rows is another"
            )
    for i, (ours, theirs) in enumerate(zip(a["records"], b["records"], strict=False)):
        if ours and theirs and ours != theirs:
            return f"global row {a['row'] + i} of the phase has another text: a shard was changed in place"
    return None


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - NAMED:,} more" if len(items) > NAMED else ""
    return ", ".join(items[:NAMED]) + more


def _digest(value: Any, size: int = 8) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()

"""From text to a model that `transformers` loads, with tokenisers of other families: ModernBERT's kind and XLM-R's."""

import hashlib
import json

import numpy as np
import pytest
from other_tokenizers import KINDS, sentences, write, write_by_transformers
from tiny import tiny_config

from mmbert_jax.checkpoint import read_meta, restore_params, save_params
from mmbert_jax.data.pipeline import microbatches, open_data
from mmbert_jax.data.prepare import prepare_corpus
from mmbert_jax.data.prepare.settings import Settings
from mmbert_jax.data.sources import Fields, find_inputs
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.data.tokenizer_identity import content, same_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.hf.export import export_hf
from mmbert_jax.hf.imported import import_meta
from mmbert_jax.hf.load import load_model
from mmbert_jax.inference.checkpoint_tokenizer import checkpoint_tokenizer
from mmbert_jax.inference.load import load
from mmbert_jax.inference.masks import fill_mask
from mmbert_jax.merge.models import open_model
from mmbert_jax.metrics import read_metrics
from mmbert_jax.step import phase_seed
from mmbert_jax.train import train

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

VOCABULARY = 400
MASKED = ("the cat{0} is a {0}, not", "{0} 東京 and{0}", "other ones rest {0}.")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind, tmp_path_factory):
    """Files as `transformers` writes them."""
    return load_tokenizer(write_by_transformers(kind, tmp_path_factory.mktemp(kind) / "tokenizer"))


@pytest.fixture(scope="module")
def texts():
    return [*sentences(400, seed=1), "<s> he said </s> [CLS] it [SEP] <pad> [PAD] goes on"]


@pytest.fixture(scope="module")
def corpus(tokenizer, texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    lines = [json.dumps({"text": text, "language": "eng"}) for text in texts]
    (folder / "eng.jsonl").write_text("\n".join(lines))
    inputs, _ = find_inputs([str(folder / "eng.jsonl")], None)
    settings = Settings(
        tokenizer.path.parent, Fields("text", "language"), row_lengths=(64,), held_out=0.1
    )
    prepare_corpus(inputs, settings, folder / "corpus", engine=1, source="text")
    return folder / "corpus"


def config_for(corpus, **overrides):
    return tiny_config(
        data__corpus=str(corpus),
        train__tokens=64 * 16 * 3,
        train__batch_warmup_tokens=0,
        optimizer__warmup_tokens=0,
        model__vocab_size=VOCABULARY,
        train__loss_chunk=VOCABULARY,
        mesh__data=-1,
        eval__groups={"all": ("eng",)},
        **overrides,
    )


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """Three steps from scratch."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(config_for(corpus), folder)
    return folder


def losses(run):
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


def exported(run, folder):
    params, meta = restore_params(run)
    assert "outputs equal those of transformers" in export_hf(
        folder, params, meta, checkpoint_tokenizer(meta)
    )
    return folder


def same_predictions(folder, *ours):
    """What each of `ours` puts at masks, and `transformers` with the folder: tokens and probabilities."""
    pipeline = transformers.pipeline("fill-mask", model=str(folder), top_k=5)
    mask = pipeline.tokenizer.mask_token
    for text in (masked.format(mask) for masked in MASKED):
        expected = pipeline(text)
        expected = expected if isinstance(expected[0], list) else [expected]
        for model in ours:
            [found] = fill_mask(model, [text])
            assert [[p.token_id for p in of_mask] for of_mask in found] == [
                [p["token"] for p in of_mask] for of_mask in expected
            ]
            np.testing.assert_allclose(
                [[p.probability for p in of_mask] for of_mask in found],
                [[p["score"] for p in of_mask] for of_mask in expected],
                atol=1e-5,
            )


# --- the corpus ---


def test_documents_begin_and_end_with_the_tokenisers_tokens(corpus, tokenizer, texts):
    """Rows as the model gets them, against the ids that `tokenizers` itself gives."""
    special = tokenizer.special
    data = open_data(config_for(corpus).data, 256, seed=0)
    rows = range(data.mixture.entries[0].rows)
    [batch] = microbatches(data, len(rows), [(0, len(rows))])
    tokens, segments = batch["tokens"], batch["segment_ids"]
    assert (segments == 0).any()
    assert set(tokens[segments == 0]) == {special.pad}
    made = transformers.AutoTokenizer.from_pretrained(tokenizer.path.parent)
    documents = {tuple(made(text)["input_ids"]) for text in texts[:-1]}
    spelled = (special.bos, *tokenizer.encode(texts[-1]), special.eos)
    assert not {special.bos, special.eos, special.pad} & set(spelled[1:-1])
    found = 0
    for row, of_row in zip(tokens, segments, strict=True):
        for segment in range(1, of_row.max() + 1):
            piece = tuple(row[of_row == segment].tolist())
            assert piece[0] == special.bos
            if piece[-1] == special.eos and len(piece) < 64:
                found += piece in documents | {spelled}
    assert found > 100


def test_the_corpus_records_its_special_ids(corpus, tokenizer, kind):
    manifest = json.loads((corpus / "manifest.json").read_text())
    recorded = manifest["tokenizer"]["special_ids"]
    ids = tokenizers_ids(tokenizer)
    assert {role: recorded[role] for role in KINDS[kind]} == {
        role: ids[piece] for role, piece in KINDS[kind].items()
    }
    assert load_tokenizer(corpus / "tokenizer").special == tokenizer.special


def tokenizers_ids(tokenizer):
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(tokenizer.path)).get_vocab()


# --- training ---


def test_masks_of_batches(corpus, tokenizer):
    """The masks that a step draws, counted over all rows: shares, and no special token chosen or drawn."""
    import jax

    from mmbert_jax.model.masking import mask_tokens
    from mmbert_jax.model.row_keys import count_rows, in_words

    config, special = config_for(corpus), tokenizer.special
    data = open_data(config.data, 256, seed=phase_seed(config))
    [batch] = microbatches(data, 256, [(0, 256)])
    inputs, positions, labels, weights = map(
        np.asarray,
        mask_tokens(
            jax.random.key(0),
            count_rows(in_words(0), 256),
            batch["tokens"],
            ratio=0.3,
            vocabulary=tokenizer.vocab_size,
            reserved=data.special.reserved(),
            mask_id=data.special.mask,
        ),
    )
    no_target = {i for piece, i in tokenizers_ids(tokenizer).items() if piece in NEVER}
    assert len(no_target) >= 5
    ordinary = ~np.isin(batch["tokens"], list(no_target))
    assert weights.sum() == np.round(0.3 * ordinary.sum(axis=1)).clip(1).sum()
    became = np.take_along_axis(inputs, positions, axis=1)[weights == 1]
    labels = labels[weights == 1]
    assert not np.isin(labels, list(no_target)).any()
    n = len(labels)
    masks = became == special.mask
    assert abs(masks.mean() - 0.8) < 4 * np.sqrt(0.16 / n)
    noise = became[~masks & (became != labels)]
    assert abs(len(noise) / n - 0.1) < 0.02
    assert not np.isin(noise, list(no_target)).any()
    existing = set(tokenizers_ids(tokenizer).values()) - no_target
    assert set(noise) <= existing
    assert len(set(noise)) > 0.5 * len(existing)
    # What is no target stays.
    changed = (inputs != batch["tokens"]).sum()
    assert changed == (became != labels).sum()


NEVER = {"<s>", "</s>", "<pad>", "<unk>", "<mask>", "<|endoftext|>", "<|padding|>"}
NEVER |= {"|||IP_ADDRESS|||", "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"}


def test_three_steps_then_the_same_predictions_everywhere(run, tmp_path):
    """From scratch: run and export, ours and `transformers`."""
    assert len(losses(run)) == 3
    assert np.isfinite(losses(run)).all()
    folder = exported(run, tmp_path / "hf")
    same_predictions(folder, load(folder), load(run))


def test_an_export_can_be_imported_and_trained_on(run, corpus, kind, tmp_path):
    folder = exported(run, tmp_path / "hf")
    fields = json.loads((folder / "config.json").read_text())
    ids = {role: read_meta(run)["tokenizer"]["special_ids"][role] for role in KINDS[kind]}
    assert fields["cls_token_id"] == fields["bos_token_id"] == ids["bos"]
    assert fields["sep_token_id"] == fields["eos_token_id"] == ids["eos"]
    assert fields["pad_token_id"] == ids["pad"]
    meta = import_meta(folder, load_model(folder).config)
    assert same_tokenizer(meta["tokenizer"], read_meta(run)["tokenizer"])
    assert meta["tokenizer"]["special_ids"] == read_meta(run)["tokenizer"]["special_ids"]


def test_a_tokeniser_used_otherwise_is_not_the_one_of_the_run(run, tmp_path):
    """The same tokenizer.json, but another file beside it: what begins a text would be another token."""
    meta = read_meta(run)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    found = checkpoint_tokenizer(meta)
    for file in found.files():
        (folder / file.name).write_bytes(file.read_bytes())
    assert checkpoint_tokenizer(meta, folder).special == found.special
    names = json.loads((folder / "tokenizer_config.json").read_text())
    names["cls_token"] = names["sep_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    with pytest.raises(UserError, match="begins, ends or masks texts with other tokens"):
        checkpoint_tokenizer(meta, folder)


# --- a model that `transformers` wrote ---


@pytest.fixture(scope="module")
def published(kind, tokenizer, tmp_path_factory):
    """A ModernBERT with random weights and the tokeniser, saved by `transformers`; of the shape of the run's model.

    bos_token_id and eos_token_id name other tokens than cls_token_id and sep_token_id, as they may.
    """
    folder = tmp_path_factory.mktemp("published") / "model"
    special = tokenizer.special
    config = transformers.ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=48,
        local_attention=16,
        global_attn_every_n_layers=2,
        max_position_embeddings=64,
        pad_token_id=special.pad,
        bos_token_id=7,
        eos_token_id=8,
        cls_token_id=special.bos,
        sep_token_id=special.eos,
    )
    torch.manual_seed(0)
    model = transformers.ModernBertForMaskedLM(config).eval().requires_grad_(False)
    for tensor in model.parameters():  # probabilities that differ clearly
        if tensor.ndim > 1:
            tensor.normal_(0, 1 / tensor.shape[1] ** 0.5)
    model.save_pretrained(folder)
    write_by_transformers(kind, folder)
    return folder


def test_a_published_model_goes_on_training_with_its_own_tokeniser(
    published, corpus, tokenizer, tmp_path
):
    model = load_model(published)
    save_params(tmp_path / "imported", model.params, import_meta(published, model.config))
    same_predictions(published, load(published), load(tmp_path / "imported"))

    config = config_for(corpus, init_from=str(tmp_path / "imported"))
    config.model.update(read_meta(tmp_path / "imported")["config"]["model"])
    train(config, tmp_path / "run")
    assert len(losses(tmp_path / "run")) == 3
    folder = exported(tmp_path / "run", tmp_path / "hf")
    same_predictions(folder, load(folder), load(tmp_path / "run"))

    before, after = (json.loads((x / "config.json").read_text()) for x in (published, folder))
    ids = {field for field in before if field.endswith("_token_id")} - {"mask_token_id"}
    assert len(ids) >= 5
    assert {field: after[field] for field in ids} == {field: before[field] for field in ids}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (published / name).read_bytes()
    assert content(folder / "tokenizer.json") == content(published / "tokenizer.json")


def test_folders_are_merged_by_what_their_ids_stand_for(published, tokenizer):
    pieces = sorted(tokenizers_ids(tokenizer).items())
    expected = hashlib.sha256(json.dumps(pieces).encode()).hexdigest()
    assert open_model(published).tokenizer == {"content": expected}


def test_a_tokeniser_that_config_json_does_not_mean_is_refused(published, tmp_path, kind):
    other = next(name for name in KINDS if name != kind)
    write(other, tmp_path / "other")
    with pytest.raises(UserError, match=r"pad_token_id is \d+ in config.json, which is not what"):
        load(published, tokenizer=tmp_path / "other")

"""The command lines between checkpoints and Hugging Face folders: what they write, and what they refuse."""

import dataclasses
import importlib.util
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from exported_model import CONFIG, run_tool
from safetensors import safe_open

from mmbert_jax.checkpoint import restore_params, save_params
from mmbert_jax.data.tokenizer import load_tokenizer
from mmbert_jax.errors import UserError
from mmbert_jax.hf.config import HfConfig
from mmbert_jax.hf.export import MARKER, export_hf
from mmbert_jax.hf.imported import exported_fields
from mmbert_jax.hf.load import HfModel, load_hf
from mmbert_jax.hf.tokenizer import copied_tokenizer
from mmbert_jax.hf.verify import Mismatch, compare_with_transformers
from mmbert_jax.model.config import ModelConfig
from mmbert_jax.model.heads import HeadConfig, outputs


def test_transformers_loads_model_and_tokenizer(exported, params, tokenizer_folder):
    """The two lines that everybody types give our logits and our ids."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForMaskedLM.from_pretrained(exported)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert type(model).__name__ == "ModernBertForMaskedLM"
    assert not model.training
    assert model.dtype == torch.float32

    text = "the cat is <mask> and the dög 東 a"
    ids = tokenizer(text)["input_ids"]
    assert ids == [2, *load_tokenizer(tokenizer_folder).encode(text), 1]
    assert tokenizer.mask_token_id == 4
    assert ids.count(4) == 1
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 256

    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits.numpy()
    tokens = np.array([ids], np.int32)
    ours = outputs(
        params, CONFIG, tokens, np.ones_like(tokens), np.arange(len(ids), dtype=np.int32)[None]
    )
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-4)


def test_import_of_an_export_gives_every_bit_back(exported, params, tmp_path):
    result = run_tool("import_hf", "--model", exported, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    back, meta = restore_params(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert (
        ModelConfig.from_config(meta["config"]["model"] | {"attention_output_dropout": 0.1})
        == CONFIG
    )
    assert meta["config"]["data"]["row_length"] == 256
    assert meta["tokenizer"]["path"] == str(exported)
    # ... and it can be exported again without naming a tokeniser.
    again = tmp_path / "again"
    result = run_tool("export_hf", "--checkpoint", tmp_path / "run", "--output", again)
    assert result.returncode == 0, result.stderr
    for file in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (again / file).read_bytes() == (exported / file).read_bytes(), file


def test_config_has_both_generations_of_rope_fields(exported):
    fields = json.loads((exported / "config.json").read_text())
    assert (fields["global_rope_theta"], fields["local_rope_theta"]) == (9_000.0, 800.0)
    assert fields["rope_parameters"]["full_attention"]["rope_theta"] == 9_000.0
    assert fields["rope_parameters"]["sliding_attention"]["rope_theta"] == 800.0
    assert fields["layer_types"] == [
        "full_attention",
        "sliding_attention",
        "sliding_attention",
        "full_attention",
    ]
    assert [fields[f"{name}_token_id"] for name in ("pad", "eos", "bos", "cls", "sep")] == [
        0,
        1,
        2,
        2,
        1,
    ]
    assert isinstance(fields["norm_eps"], float)


def test_special_ids_of_another_tokenizer_go_through(exported, params, meta, tmp_path):
    """A folder like ModernBERT's: ids at the end of the vocabulary, tokeniser files that are copied as they are."""
    folder = shutil.copytree(exported, tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text())
    ids = {
        f"{name}_token_id": i
        for name, i in zip("pad eos bos cls sep".split(), (3, 2, 1, 1, 2), strict=True)
    }
    (folder / "config.json").write_text(json.dumps(fields | ids))
    description = json.loads((folder / "tokenizer.json").read_text())
    description["added_tokens"][0]["content"] = "[PAD]"
    (folder / "tokenizer.json").write_text(json.dumps(description))
    result = run_tool("import_hf", "--model", folder, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    back, meta = restore_params(tmp_path / "run")
    again = tmp_path / "again"
    export_hf(again, back, meta, copied_tokenizer(meta))
    for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (again / file).read_bytes() == (folder / file).read_bytes(), file
    assert json.loads((again / "config.json").read_text()) == fields | ids
    # Written otherwise it is still the same one; with another piece it is not.
    (folder / "tokenizer.json").write_text(json.dumps(description) + " ")
    assert copied_tokenizer(meta).sha256 != meta["tokenizer"]["sha256"]
    description["added_tokens"][0]["content"] = "[pad]"
    (folder / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="is not the one that was imported"):
        copied_tokenizer(meta)


def test_what_transformers_reads_otherwise_is_not_written(
    params, meta, tokenizer_folder, tmp_path, monkeypatch
):
    """An export from which `transformers` computes something else than this project fails and leaves nothing."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    wrong = HfConfig(
        dataclasses.replace(CONFIG, local_rope_theta=50_000.0), HeadConfig(), {}, max_positions=256
    )
    monkeypatch.setattr("mmbert_jax.hf.verify.load_model", lambda _: HfModel(params, wrong))
    with pytest.raises(Mismatch, match="computes something else"):
        export_hf(tmp_path / "model", params, meta, load_tokenizer(tokenizer_folder))
    assert list(tmp_path.iterdir()) == []


def test_verifies_at_full_precision_on_the_cpu(exported, monkeypatch):
    """Where float32 is rounded to less by default, as on GPUs and TPUs, and another device would be taken."""
    seen = []

    def watch(params, *arguments):
        devices = {device for x in jax.tree.leaves(params) for device in x.devices()}
        seen.append((jax.config.jax_default_matmul_precision, devices))
        return outputs(params, *arguments)

    monkeypatch.setattr("mmbert_jax.hf.verify.outputs", watch)
    with jax.default_matmul_precision("bfloat16"), jax.default_device(jax.devices("cpu")[1]):
        said = compare_with_transformers(exported)
    assert "outputs equal those of transformers" in said
    assert seen == [("highest", {jax.devices("cpu")[0]})]


class OutOfMemory(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("transformers.AutoModelForMaskedLM.from_pretrained", OutOfMemory("CUDA out of memory")),
        ("transformers.AutoModelForMaskedLM.from_pretrained", KeyError("modernbert")),
        ("torch.from_numpy", ImportError("libcudart.so.13: cannot open shared object file")),
        ("mmbert_jax.hf.verify.outputs", MemoryError()),
    ],
    ids=repr,
)
def test_what_fails_elsewhere_takes_no_export_away(
    params, meta, tokenizer_folder, tmp_path, monkeypatch, where, error
):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(where, fail)
    said = export_hf(tmp_path / "model", params, meta, load_tokenizer(tokenizer_folder))
    assert said.startswith("warning: weights verified bit for bit, but its outputs could not be")
    assert type(error).__name__ in said
    assert "\n" not in said
    jax.tree.map(np.testing.assert_array_equal, load_hf(tmp_path / "model")[0], params)


def test_tensors_that_transformers_does_not_take_are_a_mismatch(
    params, meta, tokenizer_folder, tmp_path, monkeypatch
):
    """A config that says another number of layers than are stored, as far as `transformers` is told."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    real = exported_fields

    def wrong(*arguments):
        return real(*arguments) | {"num_hidden_layers": 3, "layer_types": None}

    monkeypatch.setattr("mmbert_jax.hf.export.exported_fields", wrong)
    fits = HfConfig(CONFIG, HeadConfig(), {}, max_positions=256)
    monkeypatch.setattr("mmbert_jax.hf.verify.load_model", lambda _: HfModel(params, fits))
    with pytest.raises(Mismatch, match="takes other tensors"):
        export_hf(tmp_path / "model", params, meta, load_tokenizer(tokenizer_folder))
    assert list(tmp_path.iterdir()) == []


def test_need_not_be_verified(run, tmp_path):
    """The command line's switch; and a comparison that would fail is not made."""
    arguments = ("--checkpoint", run, "--output", tmp_path / "model", "--no_verify")
    result = run_tool("export_hf", *arguments)
    assert result.returncode == 0, result.stderr
    assert "outputs not compared" in result.stdout
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_says_when_logits_cannot_be_compared(exported, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "torch" else real(name)
    )
    assert "logits not, which needs torch" in compare_with_transformers(exported)


def test_shards_and_their_index(run, params, tmp_path):
    result = run_tool(
        "export_hf",
        "--checkpoint",
        run,
        "--output",
        tmp_path / "model",
        "--max_shard_size",
        "0.0001",
    )
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "model"
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * x.size for x in jax.tree.leaves(params))
    for shard in shards:
        with safe_open(shard, "np") as opened:
            assert all(index["weight_map"][name] == shard.name for name in opened.keys())  # noqa: SIM118
    jax.tree.map(np.testing.assert_array_equal, load_hf(folder)[0], params)
    shards[1].unlink()
    with pytest.raises(UserError, match=shards[1].name):
        load_hf(folder)


def test_bfloat16_is_rounded_to_nearest(params, meta, tokenizer_folder, tmp_path):
    export_hf(tmp_path / "model", params, meta, load_tokenizer(tokenizer_folder), dtype="bfloat16")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    back, _, _ = load_hf(tmp_path / "model")
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    jax.tree.map(np.testing.assert_array_equal, back, rounded)
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert model.dtype == torch.bfloat16


def test_model_card_has_the_runs_own_numbers(exported, params):
    card = (exported / "README.md").read_text()
    total = sum(x.size for x in jax.tree.leaves(params))
    outside = total - CONFIG.vocab_size * CONFIG.hidden_size
    assert f"{total:,} parameters" in card
    assert f"{outside:,} of them outside" in card
    for line in (
        "| phase1 | 3,000 | 4,000,000 |",
        "| decay_all | 12 | 12,288 |",
        "| added last | 2 | 4.568 | 0.346 |",
        "| Tokens masked | 5% |",
        "eng, kin, swa",
    ):
        assert line in card
    assert 'from_pretrained("model")' in card


def test_model_card_of_a_merged_checkpoint_takes_figures_from_a_file(run, params, meta, tmp_path):
    parent = {"path": "runs/x", "phase": "phase2", "step": 7, "tokens": 9}
    recipe = {
        "method": "ties",
        "density": 0.5,
        "lambda": 1.0,
        "weights": [2.0],
        "base": parent,
        "models": [parent],
    }
    save_params(
        tmp_path / "merged",
        params,
        meta | {"phase": "merged", "step": 0, "held_out_groups": {}, "merge": recipe},
    )
    figures = tmp_path / "held_out.json"
    figures.write_text(
        json.dumps({"held_out_groups": {"all": {"loss": 1.25, "accuracy": 0.5, "languages": 9}}})
    )
    arguments = (
        "--checkpoint",
        tmp_path / "merged",
        "--output",
        tmp_path / "model",
        "--held_out",
        figures,
    )
    result = run_tool("export_hf", *arguments)
    assert result.returncode == 0, result.stderr
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Merged by TIES (density 0.5, lambda 1.0)" in card
    assert "| weight 2.0 | phase2 | 7 | 9 |" in card
    assert "| all | 9 | 1.250 | 0.500 |" in card


def test_replaces_its_own_folder_and_no_other(params, meta, tokenizer_folder, tmp_path):
    tokenizer, folder = load_tokenizer(tokenizer_folder), tmp_path / "model"
    export_hf(folder, params, meta, tokenizer)
    export_hf(folder, params, meta | {"step": 13}, tokenizer)
    assert json.loads((folder / MARKER).read_text())["step"] == 13
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        export_hf(folder, params, meta, tokenizer)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no export wrote"):
        export_hf(tmp_path / "other", params, meta, tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]


def test_a_failure_leaves_nothing_behind(params, meta, tokenizer_folder, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("mmbert_jax.hf.export.to_hf_files", fail)
    with pytest.raises(OSError, match="no space"):
        export_hf(tmp_path / "model", params, meta, load_tokenizer(tokenizer_folder))
    assert list(tmp_path.iterdir()) == []


def test_refuses_another_tokenizer_than_the_runs(run, meta, tokenizer_folder, tmp_path):
    other = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    file = other / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    arguments = ("--checkpoint", run, "--output", tmp_path / "model", "--tokenizer", other)
    result = run_tool("export_hf", *arguments)
    assert result.returncode == 2
    assert "is not the one that the checkpoint was trained with" in result.stderr
    assert not (tmp_path / "model").exists()


def test_help_shows_an_example():
    for tool in ("export_hf", "import_hf", "merge"):
        result = run_tool(tool, "--help")
        assert result.returncode == 0, result.stderr
        assert f"python tools/{tool}.py" in result.stdout

"""Whole runs of tiny models, checked by their files."""

import json

import pytest
import torch

from sft.config.errors import RunFailed, UserError

FAMILIES = ("llama", "qwen3", "mistral", "gemma3", "phi3", "gpt2")


def losses(result) -> list[float]:
    lines = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_its_loss_falls(run, family):
    result = run(
        f"model.architecture={family}", "trainer.learning_rate=1e-2", "trainer.max_steps=10", "trainer.warmup_steps=0"
    )
    found = losses(result)
    assert len(found) == 10
    assert sum(found[-2:]) / 2 < 0.9 * found[0]


@pytest.mark.parametrize(
    "options",
    [
        "lora=r8",
        "lora=dora",
        "lora=rslora",
        "lora=pissa",
        "lora=olora",
        "quant=nf4",
        "quant=nf4 lora=loftq",
        "quant=int8",
        "model.architecture=gemma3",
    ],
)
def test_the_adapter_on_the_plain_base_gives_the_trained_models_logits(run, options):
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback

    kept = {}

    class Keep(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                kept["logits"] = model.eval()(input_ids=torch.arange(5, 25)[None]).logits

    result = run(*options.split(), "trainer.learning_rate=1e-2", "trainer.eval_strategy='no'", callbacks=[Keep()])
    quant = json.loads((result.directory / "training_info.json").read_text())["quant"]
    settings = (
        {"load_in_8bit": True}
        if quant.get("load_in_8bit")
        else {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.float32,
        }
    )
    base = AutoModelForCausalLM.from_pretrained(
        PeftConfig.from_pretrained(result.adapter).base_model_name_or_path,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(**settings) if quant else None,
    )
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        before = base.eval()(input_ids=torch.arange(5, 25)[None]).logits
        after = PeftModel.from_pretrained(base, result.adapter).eval()(input_ids=torch.arange(5, 25)[None]).logits
    tolerance = 1e-2 if quant else 2e-5
    assert (after - kept["logits"]).abs().max() <= tolerance * kept["logits"].abs().max()
    assert (after - before).abs().max() > 10 * (after - kept["logits"]).abs().max()


def test_full_fine_tuning_writes_a_full_model(run):
    from transformers import AutoModelForCausalLM

    result = run("lora=none")
    assert not result.adapter.exists()
    model = AutoModelForCausalLM.from_pretrained(result.directory / "model")
    assert model.num_parameters() > 0
    assert json.loads((result.directory / "training_info.json").read_text())["method"] == "full"


def test_the_run_directory_has_all_documented_files(run):
    result = run()
    for name in (
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
        "config.resolved.yaml",
        "run.json",
        "training_info.json",
        "train.log",
        "metrics.jsonl",
        "metrics.json",
        "data_report.json",
        "preview.html",
        "preview.jsonl",
        "curves.png",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/tokenizer.json",
        "adapter/README.md",
    ):
        assert (result.directory / name).stat().st_size > 0 or name.endswith(".png"), name  # see empty_pictures
    metrics = json.loads((result.directory / "metrics.json").read_text())
    assert (metrics["status"], metrics["steps"]) == ("finished", 4)
    assert all(
        metrics[key] is not None
        for key in (
            "epochs",
            "train_loss",
            "eval_loss",
            "eval_perplexity",
            "eval_token_accuracy",
            "total_tokens",
            "trained_tokens",
            "tokens_per_second",
            "peak_memory_bytes",
            "train_seconds",
            "total_seconds",
            "eval_known_loss",
            "eval_unseen_loss",
        )
    )
    assert "${" not in (result.directory / "config.resolved.yaml").read_text()
    assert json.loads((result.directory / "run.json").read_text())["status"] == "finished"


def test_the_config_snapshot_composes_to_the_same_run(run):
    from sft.api import compose
    from sft.config.command_line.base import read_run
    from sft.config.compose import plain

    result = run("lora.lora_dropout=0.1")
    assert plain(compose(file=result.directory / "config.resolved.yaml")) == plain(read_run(str(result.directory)))


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_the_loss_does_not_depend_on_how_a_step_is_split(run, batch, accumulation):
    whole = run("trainer.per_device_train_batch_size=8", "trainer.max_steps=3", to="whole")
    split = run(
        f"trainer.per_device_train_batch_size={batch}",
        f"trainer.gradient_accumulation_steps={accumulation}",
        "trainer.max_steps=3",
        to="split",
    )
    assert losses(split) == pytest.approx(losses(whole), rel=1e-5)


def test_the_same_run_twice_is_bit_identical(run):
    one, two = run("lora.lora_dropout=0.1", to="one"), run("lora.lora_dropout=0.1", to="two")
    assert (one.adapter / "adapter_model.safetensors").read_bytes() == (
        two.adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_an_interrupted_run_resumes_to_the_same_weights(run):
    from transformers import TrainerCallback

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise RuntimeError("power cut")

    options = ("lora.lora_dropout=0.1", "trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.max_steps=5")
    whole = run(*options, to="whole")
    with pytest.raises(RunFailed, match="power cut"):
        run(*options, to="cut", callbacks=[Break()])
    resumed = run(*options, to="cut")
    weights = "adapter/adapter_model.safetensors"
    assert (resumed.directory / weights).read_bytes() == (whole.directory / weights).read_bytes()
    assert losses(resumed) == losses(whole)
    sessions = json.loads((resumed.directory / "run.json").read_text())["sessions"]
    assert [session["resumed_from"] for session in sessions] == [None, "checkpoint-2"]
    assert resumed.metrics["trained_tokens"] == whole.metrics["trained_tokens"]


def test_a_finished_run_is_not_trained_again(run):
    first = run()
    stamp = (first.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    again = run()
    assert (first.adapter / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    assert again.value == first.value == first.metrics["eval_loss"]


def test_a_changed_config_in_the_same_directory_is_refused_by_name(run):
    first = run()
    with pytest.raises(UserError, match=r"trainer\.learning_rate: this run was started with 0.0002, not 0.5"):
        run("trainer.learning_rate=0.5")
    assert "learning_rate: 0.5" not in (first.directory / "config.resolved.yaml").read_text()
    assert "0.5" not in (first.directory / ".hydra" / "overrides.yaml").read_text()


def test_a_non_finite_loss_stops_the_run_and_names_the_rows(run, tmp_path):
    with pytest.raises(RunFailed, match=r"step \d+ is not finite"):
        run("trainer.learning_rate=1e25", "trainer.warmup_steps=0", "trainer.max_grad_norm=0", "trainer.max_steps=8")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["status"] == "failed"
    assert "tickets rows" in (tmp_path / "run" / "train.log").read_text()


def test_the_users_callbacks_and_metrics_are_used(run):
    from transformers import TrainerCallback

    seen = []

    class Mine(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    def compute_metrics(prediction):
        return {"rows": len(prediction.label_ids)}

    result = run(callbacks=[Mine()], compute_metrics=compute_metrics)
    assert seen == [1, 2, 3, 4]
    assert result.metrics["eval_known_rows"] == 4


def test_generation_reports_exact_match_before_and_after(run):
    result = run(
        "evaluation.generate=true",
        "evaluation.before=true",
        "evaluation.before_samples=1",
        "evaluation.max_samples=2",
        "evaluation.max_new_tokens=8",
    )
    assert (result.metrics["before_eval_answers"], result.metrics["eval_answers"]) == (2, 4)
    assert result.metrics["eval_exact_match"] == 0.0
    assert {"before_eval_exact_match", "eval_known_exact_match", "eval_unseen_exact_match"} <= set(result.metrics)
    assert len((result.directory / "samples.jsonl").read_text().splitlines()) == 4


def test_a_merged_model_is_saved_on_request(run):
    from transformers import AutoModelForCausalLM

    result = run("save_merged_model=true")
    assert AutoModelForCausalLM.from_pretrained(result.directory / "merged").num_parameters() > 0


def test_a_tokenizer_with_unexpected_ids_is_refused(run):
    with pytest.raises(UserError, match="eos"):
        run("model.tokenizer.expected_ids={eos: 99999}")


def test_a_start_refused_before_the_first_step_does_not_fix_the_config(run, tmp_path):
    with pytest.raises(UserError):
        run("dataset.max_length=3")
    result = run("dataset.max_length=512")
    assert result.metrics["steps"] == 4
    assert "max_length: 512" in (result.directory / "config.resolved.yaml").read_text()
    assert "dataset.max_length=512" in (result.directory / ".hydra" / "overrides.yaml").read_text()

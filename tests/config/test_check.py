"""Mistakes in keys and values are found from the config alone, all of them at once."""

import pytest


@pytest.mark.parametrize(
    ("override", "where", "says"),
    [
        ("lora.rnak=4", "lora.rnak", "did you mean lora.r?"),
        ("trainer.learning_rte=1", "trainer.learning_rte", "did you mean trainer.learning_rate?"),
        ("trainer.lr_schedule=linear", "trainer.lr_schedule", "did you mean trainer.lr_scheduler_type?"),
        ("sede=1", "sede", "did you mean seed?"),
        ("model.tokenizer.nmae=x", "model.tokenizer.nmae", "did you mean model.tokenizer.name?"),
        (
            "quant=nf4 quant.bnb_4bit_quant_typ=nf4",
            "quant.bnb_4bit_quant_typ",
            "did you mean quant.bnb_4bit_quant_type?",
        ),
        (
            "+dataset.sources.tickets.wieght=1",
            "dataset.sources.tickets.wieght",
            "did you mean dataset.sources.tickets.weight?",
        ),
        ("callbacks.display.sconds=1", "callbacks.display.sconds", "did you mean callbacks.display.seconds?"),
        ("lora.r=many", "lora.r", "'many' is not a whole number"),
        ("lora.r=1.5", "lora.r", "1.5 is not a whole number"),
        ("lora.bias=some", "lora.bias", "one of none, all, lora_only"),
        ("trainer.lr_scheduler_type=cosin", "trainer.lr_scheduler_type", "one of linear, cosine"),
        ("trainer.bf16=maybe", "trainer.bf16", "is not true or false"),
        ("dataset.on_long=keep", "dataset.on_long", "one of drop, truncate, error"),
        ("callbacks.displya=null", "callbacks.displya", "did you mean callbacks.display?"),
        ("model.architecture=llama", "model.architecture", "no such key"),
        ("trainer.output_dir=x", "trainer.output_dir", "belongs to hydra.run.dir"),
        ("trainer.seed=1", "trainer.seed", "belongs to seed"),
        ("trainer.report_to=wandb", "trainer.report_to", "belongs to tracker"),
        ("trainer.resume_from_checkpoint=x", "trainer.resume_from_checkpoint", "belongs to resume"),
        ("trainer.hub_token=x", "trainer.hub_token", "HF_TOKEN"),
        ("dataset=local", "dataset.path", "a value is missing"),
        ("model=qewn3", "model", "did you mean model=qwen3?"),
        ("lora=none lora.r=4", "lora.r", "lora is off (lora=none)"),
        ("quant=nf4 lora=none", "quant", "cannot be trained in full"),
        ("quant=int8 lora=none", "quant", "cannot be trained in full"),
        ("dataset=mixture", "dataset.sources", "no source"),
        (
            "dataset.packing=true model.attn_implementation=paged",
            "model.attn_implementation",
            "cannot keep packed documents apart",
        ),
        (
            "callbacks=[default,early_stopping] dataset.eval_fraction=0 dataset.eval_sources=null",
            "callbacks.early_stopping",
            "makes none",
        ),
        (
            "trainer.load_best_model_at_end=true trainer.eval_strategy='no'",
            "trainer.load_best_model_at_end",
            "makes none",
        ),
        ("save_merged_model=true lora=none", "save_merged_model", "no adapter to merge"),
        ("trainer.bf16=true trainer.fp16=true", "trainer.fp16", "both on"),
        ("~lora.nothing", "lora.nothing", "nothing to delete"),
    ],
)
def test_mistake_is_named_with_its_remedy(faults, override, where, says):
    found = faults(*override.split())
    assert where in found, found
    assert says in found[where]


def test_all_faults_are_found_at_once(faults):
    found = faults("model=qewn3", "lora.rnak=4", "trainer.learning_rte=1", "trainer.output_dir=x", "lora.r=many")
    assert {"model", "lora.rnak", "trainer.learning_rte", "trainer.output_dir", "lora.r"} <= set(found)


@pytest.mark.parametrize(
    "override", ["lora.use_rslora=true", "trainer.adam_beta2=0.95", "trainer.neftune_noise_alpha=5"]
)
def test_keys_that_only_the_target_names_can_be_set(compose, override):
    composed = compose(override)
    assert composed.errors == []
    assert composed.added == {override.partition("=")[0]}


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "logging.os.system",
        "torch.utils.collect_env.run",
        "subprocess.getoutput",
        "builtins.eval",
        "sft.run.environment._git",
    ],
)
def test_targets_beside_the_list_are_refused_by_name(faults, target):
    found = faults(f"+callbacks.evil={{_target_: {target}}}")
    assert target in found["callbacks.evil._target_"]


def test_nested_targets_are_refused(faults):
    assert faults("++dataset.sources.tickets.generator={_target_: os.system}").keys() == {
        "dataset.sources.tickets.generator._target_"
    }


def test_a_users_own_class_can_be_allowed(faults):
    assert faults("+callbacks.mine={_target_: my.package.Mine}", "allow_targets=[my.package.Mine]") == {}


def test_hydras_own_nodes_are_under_the_list_too(faults):
    assert "os.system" in faults("+hydra.callbacks.evil={_target_: os.system}")["hydra.callbacks.evil._target_"]

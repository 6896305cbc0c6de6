"""Mistakes in keys and values are found from the config alone and reported together."""

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
            "cannot isolate packed documents",
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
        ("trainer.report_to=wandb", "trainer.report_to", "-> tracker=wandb"),
        ("trainer.report_to=[tensorboard]", "trainer.report_to", "-> tracker=tensorboard"),
        ("trainer.report_to=none", "trainer.report_to", "-> tracker=none"),
        ("trainer.output_dir=x", "trainer.output_dir", "-> hydra.run.dir=x"),
        ("trainer.packing=true", "trainer.packing", "-> dataset.packing=true"),
        ("trainer.max_length=512", "trainer.max_length", "-> dataset.max_length=512"),
        ("trainer.resume_from_checkpoint=x", "trainer.resume_from_checkpoint", "-> resume=x"),
        ("trainer.resume_from_checkpoint=true", "trainer.resume_from_checkpoint", "-> resume=auto"),
        ("lora.task_type=SEQ_CLS", "lora.task_type", "-> lora.task_type=CAUSAL_LM"),
        (
            "callbacks.custom_logging=true",
            "callbacks.custom_logging",
            "true is a plain value where a callback's node belongs",
        ),
        ("callbacks.early_stopping=true", "callbacks.early_stopping", "-> callbacks=[default,early_stopping]"),
        ("+callbacks.mine={every:3}", "callbacks.mine", "it has no _target_"),
        ("+dataset.sources.x=5", "dataset.sources.x", "5 is not a mapping"),
        ("callbacks=full trainer.save_total_limit=1", "callbacks.checkpoint", "-> callbacks.checkpoint.limit=1"),
        ("callbacks=full callbacks.validation.every=1.5", "callbacks.validation.every", "is not a number of steps"),
        ("trainer.warmup_steps=1.5", "trainer.warmup_steps", "a whole number of steps, or a share"),
        ("trainer.logging_steps=2.5", "trainer.logging_steps", "a whole number of steps, or a share"),
        (
            "trainer.eval_strategy=steps trainer.eval_steps=3 trainer.eval_delay=1.5",
            "trainer.eval_delay",
            "eval_delay=2",
        ),
    ],
)
def test_each_mistake_is_reported_with_its_remedy(faults, override, where, says):
    found = faults(*override.split())
    assert where in found, found
    assert says in found[where]


def test_all_mistakes_are_reported_together(faults):
    found = faults("model=qewn3", "lora.rnak=4", "trainer.learning_rte=1", "trainer.output_dir=x", "lora.r=many")
    assert {"model", "lora.rnak", "trainer.learning_rte", "trainer.output_dir", "lora.r"} <= set(found)


@pytest.mark.parametrize(
    "override", ["lora.use_rslora=true", "trainer.adam_beta2=0.95", "trainer.neftune_noise_alpha=5"]
)
def test_keys_known_only_from_the_targets_signature_can_be_set(compose, override):
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
def test_unlisted_targets_are_refused_by_name(faults, target):
    found = faults(f"+callbacks.evil={{_target_: {target}}}")
    assert target in found["callbacks.evil._target_"]


def test_nested_targets_are_refused(faults):
    assert faults("++dataset.sources.tickets.generator={_target_: os.system}").keys() == {
        "dataset.sources.tickets.generator._target_"
    }


def test_a_users_own_class_can_be_allowed(faults):
    assert faults("+callbacks.mine={_target_: my.package.Mine}", "allow_targets=[my.package.Mine]") == {}


def test_the_allow_list_also_applies_to_hydras_own_nodes(faults):
    assert "os.system" in faults("+hydra.callbacks.evil={_target_: os.system}")["hydra.callbacks.evil._target_"]


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("dataset.test_size=0.1", "did you mean dataset.eval_fraction?"),
        ("validation_split=0.1", "did you mean dataset.eval_fraction?"),
        ("wandb.project=x", "tracker=wandb tracker.project=NAME"),
        ("trainer.mixed_precision=bf16", "trainer.bf16=true, or trainer.fp16=true"),
        ("trainer.max_seq_length=512", "did you mean dataset.max_length?"),
        ("trainer.eval_packing=true", "dataset.eval_packing=true"),
        ("trainer.warmup_ratio=0.1", "trainer.warmup_steps=0.03"),
        ("save_steps=10", "did you mean trainer.save_steps?"),
        ("training.learning_rate=1", "did you mean trainer.learning_rate?"),
        ("quant.load_in_4bit=true", "quant=nf4, or leave"),
        ("quant.load_in_8bit=true", "quant=int8, or leave"),
        ("model.load_in_4bit=true", "quant=nf4"),
        ("lora.rank=8", "did you mean lora.r?"),
        ("lora.targetModules=[a]", "did you mean lora.target_modules?"),
    ],
)
def test_other_projects_names_get_the_right_suggestion(faults, override, meant):
    assert meant in faults(override)[override.partition("=")[0]]


@pytest.mark.parametrize(
    "override", ["paths=x", "paths.output=x", "trainer.saving_policy=x", "model.weights=x", "sft=1"]
)
def test_a_key_without_a_close_match_gets_no_suggestion(faults, override):
    found = faults(override)[override.partition("=")[0]]
    assert "no such key" in found
    assert "did you mean" not in found
    assert "here: " in found or "there are: " in found


def test_every_known_foreign_name_maps_to_an_existing_key(compose):
    """What the table says is a key of ours, or an override that composes."""
    import yaml

    from sft.config.checks.check import check
    from sft.config.checks.suggest import MEANINGS, _keys

    plain = compose().plain
    wandb = compose("tracker=wandb", "quant=nf4").plain
    known = {*_keys(plain), *_keys(wandb)}
    for name, text in yaml.safe_load(MEANINGS.read_text()).items():
        keys = [part.partition("=")[0].strip("'+,: ") for part in str(text).split() if "=" in part] or [str(text)]
        for key in keys:
            assert key in known or key.startswith(
                ("callbacks.", "template.", "dataset.sources.", "tracker.", "hydra.")
            ), (name, key)
    assert check(plain) == []


@pytest.mark.parametrize(
    "override",
    [
        "lora.task_type=CAUSAL_LM",
        "lora.peft_type=LORA",
        "lora.inference_mode=false",
        "trainer.push_to_hub=false",
        "trainer.warmup_steps=0.5",
        "trainer.warmup_steps=5",
        "trainer.logging_steps=10.0",
        "callbacks=full",
        "callbacks=full callbacks.checkpoint.limit=1",
    ],
)
def test_valid_configs_are_accepted(faults, override):
    assert faults(*override.split()) == {}


FIGURES = "no evaluation reports the metric"


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["objective=eval_bleu"], "objective"),
        (["objective=eval_lss"], "objective"),
        (["objective=eval_tickets_loss"], "objective"),
        (["objective=eval_exact_match"], "objective"),
        (["dataset=local", "dataset.path=x", "objective=eval_local_loss"], "objective"),
        (["dataset=local", "dataset.path=x", "dataset.eval_fraction=0", "objective=eval_loss"], "objective"),
        (
            ["trainer.metric_for_best_model=bleu", "trainer.load_best_model_at_end=true"],
            "trainer.metric_for_best_model",
        ),
        (
            ["callbacks=[default,early_stopping]", "callbacks.early_stopping.metric=bleu"],
            "callbacks.early_stopping.metric",
        ),
        (
            ["callbacks=full", "callbacks.best_model.metric_for_best_model=x"],
            "callbacks.best_model.metric_for_best_model",
        ),
    ],
)
def test_a_metric_that_no_evaluation_produces_is_refused(faults, overrides, where):
    found = faults(*overrides)[where]
    assert FIGURES in found
    assert "There are: " in found


@pytest.mark.parametrize("objective", ["tokens_per_second", "eval_exact_match"])
def test_evaluation_callbacks_do_not_follow_an_objective_known_only_at_the_end(faults, objective):
    given = [f"objective={objective}", "evaluation=generate", "callbacks=full"]
    found = faults(*given)
    assert {"callbacks.best_model", "callbacks.early_stopping"} == set(found)
    own = ["callbacks.best_model.metric_for_best_model=eval_loss", "callbacks.early_stopping.metric=eval_loss"]
    assert faults(*given, *own) == {}


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective=eval_known_loss"],
        ["objective=train_loss"],
        ["objective=peak_memory_bytes", "direction=minimize"],
        ["objective=eval_exact_match", "evaluation=generate"],
        ["objective=eval_known_f1", "evaluation=generate"],
        ["objective=lm_eval_arc_easy_acc", "evaluation=lm_eval", "evaluation.tasks=[arc_easy]"],
        ["objective=eval_mine", "+callbacks.mine={_target_: my.Mine}", "allow_targets=[my.Mine]"],
    ],
)
def test_a_metric_that_an_evaluation_produces_is_accepted(faults, overrides):
    assert faults(*overrides) == {}

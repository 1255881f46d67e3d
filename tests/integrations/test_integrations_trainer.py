"""Trainer with our groups, LoRA on the looped core, recomputation: all of them train the same network."""

import math
import warnings

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import loopscale as ls  # noqa: E402
from loopscale import Role, UserError  # noqa: E402
from loopscale.integrations import LoopedConfig, LoopedForCausalLM, LoopSampler, trainer_optimizers  # noqa: E402

SMALL = {"vocab_size": 31, "width": 32, "head_dim": 16, "layers": 4, "loops": 2, "base_layers": 1, "strength": 0.5}
TARGETS = ["qk", "value", "out", "gate", "up", "down"]
ROWS = torch.randint(1, 31, (1, 12), generator=torch.Generator().manual_seed(0)).repeat(16, 1)


def make(**changes):
    torch.manual_seed(0)
    return LoopedForCausalLM(LoopedConfig(**{**SMALL, **changes}))


def arguments(folder, **changes):
    values = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.1,
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments(**{**values, **changes})


def train(model, args, **kwargs):
    rows = [{"input_ids": row, "labels": row} for row in ROWS]
    trainer = transformers.Trainer(model=model, args=args, train_dataset=rows, **kwargs)
    trainer.train()
    return trainer, [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_the_trainer_uses_our_groups_and_learns(tmp_path):
    model, args = make(), arguments(tmp_path)
    trainer, losses = train(model, args, optimizers=trainer_optimizers(model, args))
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.optimizer.param_groups}
    assert rates == {"embedding": 0.02, "hidden": 0.01, "gain": 0.01, "readout": 0.02, "outer_gain": 0.02}
    assert losses[-1] < 0.7 * losses[0] < 0.7 * 1.2 * math.log(31)


def test_the_sampler_of_the_config_draws_the_loops_of_each_step(tmp_path):
    model, args = make(sampler={"kind": "uniform", "least": 1, "most": 6}), arguments(tmp_path)
    seen, flow = [], model.model.flow
    model.model.flow = lambda x, loops, *rest, **named: seen.append(loops) or flow(x, loops, *rest, **named)
    train(model, args, optimizers=trainer_optimizers(model, args), callbacks=[LoopSampler(model)])
    assert seen == [model.config.network().sampler.draw(step, 6, args.seed, 2) for step in range(6)]
    assert len(set(seen)) > 2 and model.drawn_loops is None


def test_gradient_checkpointing_gives_the_same_losses(tmp_path):
    plain, again = make(), make()
    args = arguments(tmp_path)
    kept = train(plain, args, optimizers=trainer_optimizers(plain, args))[1]
    name = "gradient_checkpointing"
    args = arguments(tmp_path, **{name: True})
    assert train(again, args, optimizers=trainer_optimizers(again, args))[1] == pytest.approx(kept, rel=1e-5)
    assert again.model.core.recompute.every == 1


def test_a_trainer_checkpoint_is_resumed(tmp_path):
    whole, cut = make(), make()
    args = arguments(tmp_path / "whole")
    expected = train(whole, args, optimizers=trainer_optimizers(whole, args))[1]
    args = arguments(tmp_path / "cut", max_steps=3, save_strategy="steps", save_steps=3)
    train(cut, args, optimizers=trainer_optimizers(cut, args))
    fresh, args = make(), arguments(tmp_path / "cut")
    trainer = transformers.Trainer(
        model=fresh,
        args=args,
        train_dataset=[{"input_ids": row, "labels": row} for row in ROWS],
        optimizers=trainer_optimizers(fresh, args),
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-3:] == pytest.approx(expected[-3:], rel=1e-4)


class TestLora:
    peft = pytest.importorskip("peft")

    def adapted(self, **changes):
        config = self.peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=TARGETS, **changes)
        return self.peft.get_peft_model(make(), config)

    def test_it_trains_saves_loads_and_merges(self, tmp_path):
        model = self.adapted()
        before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
        args = arguments(tmp_path, learning_rate=0.05)
        _, losses = train(model, args, optimizers=trainer_optimizers(model, args))
        assert losses[-1] < losses[0] - 0.1
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
        model.eval()
        expected = model(ROWS[:2]).logits
        model.save_pretrained(tmp_path / "adapter")
        assert not list((tmp_path / "adapter").glob("model*.safetensors"))
        loaded = self.peft.PeftModel.from_pretrained(make(), tmp_path / "adapter").eval()
        assert torch.equal(loaded(ROWS[:2]).logits, expected)
        merged = loaded.merge_and_unload()
        assert type(merged) is LoopedForCausalLM
        torch.testing.assert_close(merged(ROWS[:2]).logits, expected, atol=1e-4, rtol=1e-4)

    def test_generate_goes_through_with_loops_and_cache(self):
        model = self.adapted(init_lora_weights=False).eval()
        how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "loops": 5}
        cached = model.generate(input_ids=ROWS[:1], **how)
        assert torch.equal(cached, model.generate(input_ids=ROWS[:1], use_cache=False, **how))

    def test_with_recomputation_the_adapters_get_the_same_gradients(self):
        gradients = []
        for enable in (False, True):
            model = self.adapted().train()
            if enable:
                model.gradient_checkpointing_enable()
            model(input_ids=ROWS[:2], labels=ROWS[:2]).loss.backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
        assert gradients[0] and any(gradient.abs().sum() > 0 for gradient in gradients[0].values())
        for name, gradient in gradients[1].items():
            torch.testing.assert_close(gradient, gradients[0][name])

    def test_groups_hold_the_adapters_alone(self, tmp_path):
        model = self.adapted()
        optimizer, _ = trainer_optimizers(model, arguments(tmp_path))
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in model.parameters() if p.requires_grad}
        assert {group["name"] for group in optimizer.param_groups} == {Role.HIDDEN.value}

    def test_a_parameter_outside_is_named(self, tmp_path):
        config = self.peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=4, token_dim=32, num_attention_heads=2
        )
        model = self.peft.get_peft_model(make(), config)
        with pytest.raises(UserError, match=r"parameter 'prompt_encoder\..*' is outside the model"):
            trainer_optimizers(model, arguments(tmp_path))


def test_the_mup_fields_of_a_config_state_the_width(tmp_path):
    import loopscale as ls

    size = dict(vocab_size=31, hidden_size=32, intermediate_size=48, num_attention_heads=2, num_hidden_layers=2)

    def rates(**fields):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **fields))
        ls.attach(model, loops=1)
        made, _ = trainer_optimizers(model, arguments(tmp_path))
        return {group["name"]: group["lr"] for group in made.param_groups}

    plain, stated = rates(), rates(mup=True, mup_base_width=8)
    assert stated["hidden"] == plain["hidden"] / 4 and stated["embedding"] == plain["embedding"]
    assert rates(mup=False, mup_base_width=8) == plain


def llama():
    size = dict(vocab_size=31, hidden_size=32, intermediate_size=48, num_attention_heads=2, num_hidden_layers=4)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**size))


def converted(**given):
    model = llama()
    ls.convert(model, 1, 3, loops=3, steps="even", **given)
    return model


def attached():
    model = llama()
    ls.attach(model, loops=1)
    return model


def looped():
    from loopscale.diagnosis import trainer_callback

    branch = ls.ScaledResidual(torch.nn.Linear(16, 16))
    model = torch.nn.Sequential(torch.nn.Embedding(31, 16), ls.Loop(torch.nn.Sequential(branch, branch), loops=2))
    trainer_callback().on_train_begin(None, None, None, model=model)
    return model


def one_step(model, optimizer):
    out = model(ROWS)
    getattr(out, "logits", out).sum().backward()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optimizer.step()
        optimizer.step()
    return [str(warning.message) for warning in said if "every role one rate" in str(warning.message)]


@pytest.mark.parametrize(
    ("build", "factor"),
    [(make, "0.5"), (attached, "0.5"), (lambda: converted(base_layers=1), "0.707"), (looped, "0.707")],
    ids=["house", "attached", "converted", "loop with the callback"],
)
def test_an_optimizer_without_the_rules_groups_is_said_once_under_any_framework(build, factor):
    model = build().train()
    (said,) = one_step(model, torch.optim.AdamW(model.parameters()))
    assert f"wants {factor} of it" in said and "optimizers=trainer_optimizers(model, args)" in said
    model = build().train()
    assert not one_step(model, ls.build_optimizer(model, "adamw", lr=0.01))
    assert not one_step(model, torch.optim.AdamW(model.parameters()))  # its first optimizer was the right one


def test_nothing_is_said_where_one_rate_is_what_the_rule_asks_or_another_model_is_trained():
    model = converted()
    assert not one_step(model.train(), torch.optim.AdamW(model.parameters()))
    waiting, other = converted(base_layers=1).train(), torch.nn.Embedding(31, 16)
    assert not one_step(other, torch.optim.AdamW(other.parameters()))
    assert one_step(waiting, torch.optim.AdamW(waiting.parameters()))


def test_a_trainer_without_groups_and_callback_is_warned(tmp_path):
    with pytest.warns(UserWarning, match="every role one rate"):
        train(converted(base_layers=1), arguments(tmp_path, max_steps=1))


@pytest.mark.parametrize(("optim", "fix"), [("adafactor", "take one of adamw, muon, sgd"), ("sgd", r"args, 'sgd'\)")])
def test_an_optimizer_of_the_arguments_that_would_not_be_followed_is_refused(tmp_path, optim, fix):
    model = make()
    asked = arguments(tmp_path, optim=optim)
    with pytest.raises(UserError, match=f"args.optim is '{optim}' and the groups would train with adamw: .*{fix}"):
        trainer_optimizers(model, asked)

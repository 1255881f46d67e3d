"""What one training run is: four sections of typed, validated values that go to TOML and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field

from loopscale.errors import UserError
from loopscale.factory import OFFERED
from loopscale.parameterization import Depth, Width, prescription

if TYPE_CHECKING:
    from loopscale.data import Dataset
    from loopscale.nn import ModelConfig

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Moment = Annotated[float, Field(ge=0, lt=1, strict=False)]


class Section(BaseModel):
    """One table of the TOML file: no unknown keys, no text where a number belongs, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """The network; the fields of `loopscale.nn.ModelConfig`, where combinations are checked.

    `factory` ("file.py:make_model") names a user model in place of the house model. Only what its factory takes by name
    reaches it.
    """

    factory: Annotated[str | None, Field(min_length=1, exclude_if=lambda place: place is None)] = None
    vocab_size: Count | None = None
    width: Count = 64
    layers: Count = 1
    loops: Count = 4
    prelude: Annotated[int, Field(ge=0)] = 0
    coda: Annotated[int, Field(ge=0)] = 0
    head_dim: Count = 32
    kv_heads: Count | None = None
    mlp_ratio: Positive = 8 / 3
    qk_norm: bool = False
    tied_readout: bool = False
    rule: str = "looped"
    strength: Positive = 1.0
    base_layers: Count | None = None
    base_width: Count | None = None
    norm: str | None = None
    injection: str | dict[str, Any] = "none"
    order: str = "stack"
    sampler: str | dict[str, Any] = "fixed"
    gradient_visits: Count | None = None
    visit_embedding: Annotated[int, Field(ge=0)] = 0
    scale: str = "rescale"

    @property
    def depth(self) -> Depth:
        """N and L."""
        return Depth(self.loops, self.layers)

    @property
    def width_ratio(self) -> Width:
        """The width, over that of the base."""
        return Width(self.width, self.base_width)


class DataSection(Section):
    """Where tokens come from and how they are cut into batches; `path` is any source that `load_data` knows.

    `batch_size` counts the sequences of one step over all ranks. `order`: windows anywhere, or each window once an epoch.
    `prefetch` batches are made ahead, while the step before is computed.
    """

    path: Annotated[str, Field(min_length=1)] = "stdlib"
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    vocab_size: Count | None = None
    context: Annotated[int, Field(ge=2)] = 64
    batch_size: Count = 16
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    max_tokens: Count | None = None
    text_field: Annotated[str, Field(min_length=1)] = "text"
    order: Literal["random", "epochs"] = "random"
    prefetch: Annotated[int, Field(ge=0)] = 2


class OptimSection(Section):
    """The optimizer and its rates; `clip = 0` leaves gradients alone, `warmup` is a fraction of the steps.

    `outer_lr` is a factor on the rate of embedding, readout and outer gains, which are visited once.
    """

    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    lr: Positive = 2.0**-7
    outer_lr: Positive = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: Annotated[tuple[Moment, Moment], Field(strict=False)] = (0.9, 0.95)
    eps: Positive = 1e-8
    momentum: Fraction = 0.95
    clip: Annotated[float, Field(ge=0)] = 1.0
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    warmup: Fraction = 0.1


class TrainSection(Section):
    """How long, from which seed, on what, and what is written down; an `..._every` of 0 means never.

    `precision` "auto" measures some steps at the start of a run and takes bf16 autocast where it is faster; in a study and
    in `fit` it is fp32. `init_from` names a run whose weights this one begins with.
    `compile` compiles the body of the loop, after one step of it gave eager's gradients (`nn.compile_checked`).
    `recompute` = k keeps only the stream that enters every k visits, `recompute_keep` bounds how many (`nn.Recompute`).
    With more than one rank (torchrun), `strategy` is "ddp" (a replica each) or "fsdp" (sharded). `accumulate` parts of a
    batch go through the model one after the other. `loss_rows` > 0 computes the loss that many positions at a time, so that
    the logits of a large vocabulary are never all in memory (`nn.chunked_cross_entropy`).
    """

    steps: Count = 300
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    checkpoint_every: Annotated[int, Field(ge=0)] = 100
    keep: Count = 2
    eval_every: Annotated[int, Field(ge=0)] = 100
    eval_batches: Annotated[int, Field(ge=0)] = 8
    stream_every: Annotated[int, Field(ge=0)] = 50
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    recompute: Annotated[int, Field(ge=0)] = 0
    recompute_keep: Count | None = None
    loss_rows: Annotated[int, Field(ge=0)] = 0
    trackers: Annotated[tuple[str, ...], Field(strict=False)] = ()
    strategy: Literal["ddp", "fsdp"] = "ddp"
    accumulate: Count = 1
    init_from: Annotated[str | None, Field(min_length=1, exclude_if=lambda run: run is None)] = None


class TrainConfig(Section):
    """One training run. Equal configs on equal versions give equal losses.

    >>> TrainConfig().optim.lr
    0.0078125
    """

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()

    def network(self, vocab_size: int) -> ModelConfig:
        """Give the model's config; `vocab_size` counts where the file names none.

        Raises `UserError` when two values do not fit together, for example head_dim and width, and for a user model.
        """
        from loopscale.nn import ModelConfig

        if self.model.factory is not None:
            raise UserError(
                f"this is a training of {self.model.factory}, and only the house model is known by its config: build it "
                "with loopscale.train.user_model, and load model.safetensors into it"
            )
        values = self.model.model_dump(exclude={"factory"})
        values["vocab_size"] = self.model.vocab_size or vocab_size
        return ModelConfig(**values)

    def prescription(self) -> list[dict[str, Any]]:
        """Give the table of everything that the rule applies at this size, as `loopscale.prescription` does."""
        size = self.model
        return prescription(
            size.depth,
            size.width_ratio,
            rule=size.rule,
            strength=size.strength,
            base_layers=size.base_layers,
            optimizer=self.optim.optimizer,
        )

    def load_data(self) -> Dataset:
        """Read and tokenize the data that the config names; raises `UserError` when it cannot be used."""
        from loopscale.data import load_data

        values = self.data.model_dump(exclude={"path", "batch_size", "order", "prefetch"})
        return load_data(self.data.path, **values)

    def flat(self) -> dict[str, Any]:
        """Give "section.key" -> value: what two configs are compared by."""
        return {f"{name}.{key}": value for name, section in self.to_dict().items() for key, value in section.items()}

    def to_dict(self) -> dict[str, Any]:
        """Give nested plain values without the keys that are absent: what TOML and JSON can hold.

        With a user model, values that describe the house model alone are left out.
        """
        record = self.model_dump(mode="json", exclude_none=True)
        if self.model.factory is not None:
            kept = ("factory", *OFFERED.split(", "))
            record["model"] = {name: value for name, value in record["model"].items() if name in kept}
        return record

    def to_toml(self) -> str:
        """Write every value, defaults included, as TOML that `load_config` reads back to an equal config."""
        return tomli_w.dumps(self.to_dict())

    def for_study(self) -> TrainConfig:
        """Give the config of a study's trials: one precision for all of them, fp32 unless one is asked for."""
        return self.replaced("train", precision="fp32") if self.train.precision == "auto" else self

    def using(self, factory: str | None) -> TrainConfig:
        """Give the same training of the model that `factory` ("file.py:make_model") builds; None: of the house model."""
        return self.replaced("model", factory=factory)

    def updated(self, **sections: Mapping[str, Any]) -> TrainConfig:
        """Give a copy with values of some sections changed, checked; raises `ValidationError`."""
        values = self.model_dump(mode="json")
        for name, changed in sections.items():
            values[name].update(changed)
        return TrainConfig.model_validate(values)

    def replaced(self, section: str, **values: Any) -> TrainConfig:
        """Give a copy with some values of a section replaced, unchecked."""
        changed = getattr(self, section).model_copy(update=values)
        return self.model_copy(update={section: changed})

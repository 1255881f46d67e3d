"""How it is run: checkpointed, scripted, compiled, mapped over an ensemble, against a slow copy, in eight bits; and wrappers around it."""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state
from torch.utils.checkpoint import checkpoint

import loopscale as ls


class Layer(nn.Module):
    """Pre-norm branch, without its skip."""

    def __init__(self, d, gain=1.0):
        super().__init__()
        self.ln, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(3 * d, d)
        nn.init.xavier_normal_(self.up.weight, gain), nn.init.xavier_normal_(self.down.weight, gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(self.ln(x))))


class Base(nn.Module):
    def __init__(self, n=8, gain=1.0, d=32):
        super().__init__()
        self.emb, self.layer, self.head, self.n = nn.Embedding(48, d), Layer(d, gain), nn.Linear(d, 48), n

    def forward(self, ids):
        x = self.emb(ids)
        for _ in range(self.n):
            x = self.visit(x)
        return self.head(x)


class Checkpointed(Base):
    """Every visit, skip and all, is made again in the backward pass."""

    def visit(self, x):
        return checkpoint(lambda h: h + self.layer(h), x, use_reentrant=False)


class Reentrant(Base):
    """The old kind of checkpoint, which runs its function without gradient first; 1/N."""

    def visit(self, x):
        return checkpoint(self.once, x, use_reentrant=True)

    def once(self, x):
        return x + self.layer(x) / self.n


class Divided(Base):
    """1/N, in the forward."""

    def visit(self, x):
        return x + self.layer(x) / self.n


class Compiled(Divided):
    """The branch was handed to torch.compile; 1/N."""

    def __init__(self, n=8):
        super().__init__(n)
        self.layer.compile(backend="eager")


class Traced(Base):
    """The branch was scripted for speed, the loop was not; no factor."""

    def __init__(self, n=8):
        super().__init__(n, 1.4)
        self.layer = torch.jit.script(self.layer)

    def visit(self, x):
        return x + self.layer(x)


class Ensemble(nn.Module):
    """Four members with weights of their own, mapped over at once; each is looped by 1/N."""

    def __init__(self, n=6, members=4, d=24):
        super().__init__()
        self.emb, self.head, self.n = nn.Embedding(48, d), nn.Linear(d, 48), n
        layers = [Layer(d) for _ in range(members)]
        weights, _ = stack_module_state(layers)
        self.weights = nn.ParameterDict({k.replace(".", "_"): nn.Parameter(v.detach()) for k, v in weights.items()})
        self.names, self.skeleton = list(weights), (copy.deepcopy(layers[0]).to("meta"),)

    def forward(self, ids):
        x = self.emb(ids).expand(4, -1, -1, -1)
        weights = {name: self.weights[name.replace(".", "_")] for name in self.names}
        call = torch.vmap(lambda w, h: functional_call(self.skeleton[0], w, (h,)))
        for _ in range(self.n):
            x = x + call(weights, x) / self.n
        return self.head(x.mean(0))


class Student(Base):
    """Self-distillation: an EMA teacher, at first a copy, runs the same loop without gradient; the loss is how far the two are apart."""

    def __init__(self, n=6):
        super().__init__(n)
        self.teacher = copy.deepcopy(self.layer).requires_grad_(False)
        self.predictor = nn.Linear(32, 32)

    @torch.no_grad()
    def update_teacher(self, decay=0.999):
        for slow, fast in zip(self.teacher.parameters(), self.layer.parameters()):
            slow.lerp_(fast, 1 - decay)

    def encode(self, x, layer):
        for _ in range(self.n):
            x = x + layer(x) / self.n
        return x

    def forward(self, ids):
        z = self.encode(self.emb(ids), self.layer)
        with torch.no_grad():
            target = self.encode(self.emb(ids), self.teacher)
        loss = F.smooth_l1_loss(self.predictor(z), target)
        return {"loss": loss, "logits": self.head(z)}


class Round(torch.autograd.Function):
    """Straight through."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class EightBit(Base):
    """Weights are rounded to 8 bits in every forward, straight-through backwards; the stream is float32; 1/N."""

    @staticmethod
    def low(w):
        scale = w.detach().abs().amax() / 127
        return Round.apply(w / scale) * scale

    def visit(self, x):
        h = F.linear(self.layer.ln(x), self.low(self.layer.up.weight), self.layer.up.bias)
        return x + F.linear(F.gelu(h), self.low(self.layer.down.weight), self.layer.down.bias) / self.n


class Unpadded(Base):
    """A norm without its epsilon, and a padding token whose embedding is zero."""

    def __init__(self, n=8):
        super().__init__(n)
        self.emb, self.g = nn.Embedding(48, 32, padding_idx=0), nn.Parameter(torch.ones(32))

    def visit(self, x):
        y = x / x.square().mean(-1, keepdim=True).sqrt() * self.g
        return x + self.layer(y) / self.n


class Lit(nn.Module):
    """A trainer's module: the net is an attribute, the forward takes the batch as it comes, hyperparameters are in a dict."""

    def __init__(self, n=8, lr=1e-3):
        super().__init__()
        self.hparams = {"n": n, "lr": lr}
        self.net, self.log_dict = Reentrant(n), {}
        self.net.visit = self.net.once

    def forward(self, batch):
        ids, labels = batch["input_ids"], batch["labels"]
        logits = self.net(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return {"loss": loss, "logits": logits, "n_tokens": int((labels != -100).sum())}

    def training_step(self, batch, batch_idx):
        return self(batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])


class DeepSupervision(Base):
    """Nothing is returned but losses, one for each visit and their mean; no factor."""

    def forward(self, ids):
        x, losses = self.emb(ids), {}
        for i in range(self.n):
            x = x + self.layer(x)
            losses[f"loss_{i}"] = F.cross_entropy(
                self.head(F.layer_norm(x, x.shape[-1:]))[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
            )
        return {"loss": torch.stack(list(losses.values())).mean(), **losses}


class CutWithin(Base):
    """The detach stands on the skip of every visit, so that gradients go back through the branches only. 1/N."""

    def visit(self, x):
        return x.detach() + self.layer(x) / self.n


def scaled_and_attached(n=8):
    """A loop that divides by N in its forward, and then `attach` on top of it."""
    model = Divided(n)
    ls.attach(model, loops=n, branches=["layer"])
    return model


def checkpointed(n=8):
    return Checkpointed(n, 1.4)


def reentrant(n=8):
    return Reentrant(n)


def compiled(n=8):
    return Compiled(n)


def scripted(n=8):
    return Traced(n)


def ensemble(n=6):
    return Ensemble(n)


def student(n=6):
    return Student(n)


def eight_bit(n=8):
    return EightBit(n)


def unpadded(n=8):
    ids = torch.randint(1, 48, (2, 12), generator=torch.Generator().manual_seed(51))
    ids[1, 8:] = 0
    return Unpadded(n), ids


def lit(n=8):
    ids = torch.randint(1, 48, (2, 12), generator=torch.Generator().manual_seed(51))
    labels = ids.roll(-1, 1)
    labels[:, -1] = -100
    return Lit(n), {"input_ids": ids, "labels": labels}


def deep_supervision(n=8):
    return DeepSupervision(n, 1.4)


def cut_within(n=6):
    return CutWithin(n)


TRUTHS = {
    "scaled_and_attached": dict(
        codes=["double-depth-scale"],
        loops=8,
        layers=1,
        level="medium",
        kind="bookkeeping",
        watch="Base.forward:x",
        place={"double-depth-scale": ["layer|return x + self.layer(x) / self.n"]},
        why="1/N of the forward and 1/N of the handle",
    ),
    "checkpointed": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=8,
        layers=1,
        level="medium",
        kind="how it is run",
        watch="Base.forward:x",
        mend="attach",
        place={"unscaled-residual": ["return checkpoint(lambda|layer"]},
        why="eps = 1, the addition is inside a checkpointed lambda",
    ),
    "reentrant": dict(
        codes=[],
        loops=8,
        layers=1,
        level="hard",
        kind="how it is run",
        watch="Base.forward:x",
        why="1/N; the first run is without gradient, the second has it",
    ),
    "compiled": dict(
        codes=[],
        loops=8,
        layers=1,
        level="medium",
        kind="how it is run",
        watch="Base.forward:x",
        why="1/N",
    ),
    "scripted": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=8,
        layers=1,
        level="medium",
        kind="how it is run",
        watch="Base.forward:x",
        place={"unscaled-residual": ["return x + self.layer(x)|layer"]},
        why="the branch is opaque, the addition is not",
    ),
    "ensemble": dict(
        codes=[],
        loops=6,
        layers=1,
        level="hard",
        kind="how it is run",
        watch="Ensemble.forward:x",
        why="1/N for each member; members are not visits and differ from the start",
    ),
    "student": dict(
        codes=[],
        loops=6,
        layers=1,
        level="hard",
        kind="two networks",
        watch="Student.encode:x",
        why="the teacher is a copy by design, in a pass of its own; both by 1/N",
    ),
    "eight_bit": dict(
        codes=[],
        loops=8,
        layers=1,
        level="medium",
        kind="precision",
        watch="Base.forward:x",
        why="the weights are rounded, the stream is not",
    ),
    "unpadded": dict(
        codes=["nonfinite"],
        level="medium",
        kind="finite",
        watch="Base.forward:x",
        place={"nonfinite": ["y = x / x.square()"]},
        why="0/0 at the padding",
    ),
    "lit": dict(
        codes=[],
        loops=8,
        layers=1,
        level="medium",
        kind="wrapper",
        watch="Base.forward:x",
        why="1/N under a trainer's module",
    ),
    "deep_supervision": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=8,
        layers=1,
        level="hard",
        kind="wrapper",
        watch="DeepSupervision.forward:x",
        place={"unscaled-residual": ["x = x + self.layer(x)|layer"]},
        why="eps = 1; the output is a dict of losses",
    ),
    "cut_within": dict(
        codes=[],
        other=["truncated-gradient"],
        loops=6,
        layers=1,
        level="hard",
        kind="truncation",
        watch="Base.forward:x",
        why="every visit still has a gradient, through the branches; earlier ones a smaller one",
    ),
}

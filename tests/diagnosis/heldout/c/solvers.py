"""Loops that solve something: accelerated fixed points, sparse codes, sampling steps, multistep and symplectic integrators, rollouts."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn


class Anderson(nn.Module):
    """A tied layer at its fixed point, by Anderson's acceleration over the last three residuals; gradients through one more step."""

    def __init__(self, max_iter=8, d=24, m=3):
        super().__init__()
        self.inject, self.hidden, self.classify = nn.Linear(6, d), nn.Linear(d, d), nn.Linear(d, 4)
        nn.init.orthogonal_(self.hidden.weight, gain=0.7)
        self.max_iter, self.m = max_iter, m

    def cell(self, z, x):
        return torch.tanh(self.hidden(z) + self.inject(x))

    @torch.no_grad()
    def solve(self, x, z):
        zs, fs = [z], [self.cell(z, x)]
        for _ in range(self.max_iter - 1):
            zs, fs = zs[-self.m :], fs[-self.m :]
            g = torch.stack([f - z for f, z in zip(fs, zs)], 1)
            gram = g @ g.mT + 1e-4 * torch.eye(g.shape[1])
            alpha = torch.linalg.solve(gram, torch.ones(len(x), g.shape[1], 1))
            alpha = alpha / alpha.sum(1, keepdim=True)
            z = (alpha * torch.stack(fs, 1)).sum(1)
            zs.append(z)
            fs.append(self.cell(z, x))
        return z

    def forward(self, x):
        z = self.solve(x, torch.tanh(self.inject(x)))
        return self.classify(self.cell(z, x))


class ISTA(nn.Module):
    """Sparse coding: a gradient step on |y - A x|^2 with a learned dictionary, then a soft threshold."""

    def __init__(self, n_iter=8, m=16, n=40):
        super().__init__()
        self.A = nn.Parameter(F.normalize(torch.randn(m, n), dim=0))
        self.threshold, self.n_iter = nn.Parameter(torch.tensor(0.02)), n_iter

    def forward(self, y):
        step = 1 / torch.linalg.matrix_norm(self.A, 2).detach() ** 2
        x = step * y @ self.A
        for _ in range(self.n_iter):
            x = x - step * (x @ self.A.T - y) @ self.A
            x = torch.sign(x) * F.relu(x.abs() - self.threshold)
        return x @ self.A.T


class DDIM(nn.Module):
    """A deterministic sampler: the net guesses the noise, its time comes in through a sinusoid, the level falls from visit to visit."""

    def __init__(self, sampling_steps=10, d=8, h=64):
        super().__init__()
        self.eps_net, self.sampling_steps = (
            nn.Sequential(nn.Linear(d + 8, h), nn.SiLU(), nn.Linear(h, h), nn.SiLU(), nn.Linear(h, d)),
            sampling_steps,
        )

    def predict(self, x, level):
        t = (torch.arange(1, 5) * level * 3.0).expand(len(x), 4)
        return self.eps_net(torch.cat([x, t.sin(), t.cos()], -1))

    def forward(self, x_T):
        levels = torch.cos(torch.linspace(1.45, 0.05, self.sampling_steps + 1)) ** 2
        x = x_T
        for now, then in itertools.pairwise(levels):
            e = self.predict(x, now)
            x0 = ((x - (1 - now).sqrt() * e) / now.sqrt()).clamp(-2, 2)
            x = then.sqrt() * x0 + (1 - then).sqrt() * e
        return x


class AdamsBashforth(nn.Module):
    """Two-step Adams-Bashforth with the field as a function of parameters in a plain dict; time runs from 0 to 1."""

    def __init__(self, nfe=8, d=16):
        super().__init__()
        self.enter, self.leave, self.nfe = nn.Linear(4, d), nn.Linear(d, 1), nfe
        self.theta = nn.ParameterDict(
            {
                "w": torch.randn(d, d + 1) * d**-0.5,
                "b": torch.zeros(d),
                "v": torch.randn(d, d) * d**-0.5,
            }
        )

    def field(self, t, y):
        p = self.theta
        y = torch.cat([y, torch.full_like(y[..., :1], t)], -1)
        return torch.tanh(y @ p["w"].T + p["b"]) @ p["v"].T

    def forward(self, x):
        y, dt, old = self.enter(x), 1.0 / self.nfe, None
        for i in range(self.nfe):
            new = self.field(i * dt, y)
            y = y + dt * new if old is None else y + dt * (1.5 * new - 0.5 * old)
            old = new
        return self.leave(y)


class Leapfrog(nn.Module):
    """A Hamiltonian system of places and momenta, half steps first and last; the force is a small network."""

    def __init__(self, L_steps=6, d=12):
        super().__init__()
        self.q_in, self.p_in, self.out = nn.Linear(5, d), nn.Linear(5, d), nn.Linear(2 * d, 2)
        self.force, self.L_steps = nn.Sequential(nn.Linear(d, 3 * d), nn.Softplus(), nn.Linear(3 * d, d)), L_steps

    def forward(self, x):
        state = {"q": self.q_in(x), "p": self.p_in(x)}
        h = 1 / self.L_steps
        for _ in range(self.L_steps):
            half = state["p"] - 0.5 * h * self.force(state["q"])
            q = state["q"] + h * half
            state = {"q": q, "p": half - 0.5 * h * self.force(q)}
        return self.out(torch.cat([state["q"], state["p"]], -1))


class FourierRollout(nn.Module):
    """A Fourier operator that forecasts a field again and again; the increments are of full size, all forecasts are given back."""

    def __init__(self, lead_times=8, c=8, modes=6):
        super().__init__()
        self.up, self.down = nn.Conv1d(1, c, 1), nn.Conv1d(c, 1, 1)
        self.spectral = nn.Parameter(torch.randn(c, c, modes, dtype=torch.cfloat) * c**-0.5)
        self.point, self.modes, self.lead_times = nn.Conv1d(c, c, 1), modes, lead_times
        nn.init.kaiming_normal_(self.down.weight), nn.init.kaiming_normal_(self.up.weight)

    def operator(self, v):
        freq = torch.fft.rfft(v)[..., : self.modes]
        mixed = torch.fft.irfft(torch.einsum("bim,iom->bom", freq, self.spectral), n=v.shape[-1])
        return F.gelu(mixed + self.point(v))

    def forward(self, field):
        forecasts = []
        for _ in range(self.lead_times):
            rms = field.pow(2).mean((-1, -2), keepdim=True).add(1e-6).sqrt()
            field = field + self.down(self.operator(self.up(field / rms)))
            forecasts.append(field)
        return torch.stack(forecasts, 1)


class Reservoir(nn.Module):
    """An echo state network run over and over on one input: frozen random weights of radius 0.9, a leak, a trained reading."""

    def __init__(self, washout=10, n=60):
        super().__init__()
        w = torch.randn(n, n) * (torch.rand(n, n) < 0.2)
        w *= 0.9 / torch.linalg.eigvals(w).abs().max()
        self.register_buffer("W_in", torch.empty(n, 3).uniform_(-1, 1))
        self.W = nn.Parameter(w, requires_grad=False)
        self.readout, self.washout, self.leak = nn.Linear(n, 2), washout, 0.6

    def forward(self, u):
        drive = u @ self.W_in.T
        r = torch.tanh(drive)
        for _ in range(self.washout):
            r = (1 - self.leak) * r + self.leak * torch.tanh(r @ self.W.T + drive)
        return self.readout(r)


class Recycling(nn.Module):
    """AlphaFold's recycling: the trunk starts from the sequence and a norm of its last result; gradients through the last run only."""

    def __init__(self, num_recycles=4, d=32):
        super().__init__()
        self.seq, self.prev_norm, self.distogram = nn.Embedding(22, d), nn.LayerNorm(d), nn.Linear(d, 10)
        self.trunk = nn.Sequential(
            *[nn.TransformerEncoderLayer(d, 2, 64, 0.0, batch_first=True, norm_first=True) for _ in range(2)]
        )
        self.num_recycles = num_recycles

    def forward(self, aatype):
        prev = None
        for cycle in range(self.num_recycles):
            with torch.set_grad_enabled(cycle == self.num_recycles - 1):
                start = self.seq(aatype)
                if prev is not None:
                    start = start + self.prev_norm(prev)
                prev = self.trunk(start)
        return self.distogram(prev[:, :, None] * prev[:, None])


class Hopfield(nn.Module):
    """Retrieval in a modern Hopfield network: the state becomes a mean of stored patterns, weighted by how alike they are."""

    def __init__(self, num_retrievals=5, patterns=30, d=24, beta=2.0):
        super().__init__()
        self.query, self.Y, self.num_retrievals = (
            nn.Linear(7, d),
            nn.Parameter(torch.randn(patterns, d)),
            num_retrievals,
        )
        self.beta, self.target = beta, nn.Linear(d, 3)

    def forward(self, batch):
        xi = self.query(batch)
        for _ in range(self.num_retrievals):
            xi = torch.softmax(self.beta * xi @ self.Y.T * xi.shape[-1] ** -0.5, -1) @ self.Y
        return self.target(xi)


def rows(n, d):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(21))


def anderson(max_iter=8):
    return Anderson(max_iter), rows(5, 6)


def ista(n_iter=8):
    return ISTA(n_iter), rows(5, 16)


def ddim(sampling_steps=10):
    return DDIM(sampling_steps), rows(6, 8)


def adams(nfe=8):
    return AdamsBashforth(nfe), rows(6, 4)


def leapfrog(L_steps=6):
    return Leapfrog(L_steps), rows(6, 5)


def fourier(lead_times=8):
    return FourierRollout(lead_times), rows(3, 32)[:, None]


def reservoir(washout=10):
    return Reservoir(washout), rows(6, 3)


def recycling(num_recycles=4):
    return Recycling(num_recycles)


def hopfield(num_retrievals=5):
    return Hopfield(num_retrievals), rows(6, 7)


TRUTHS = {
    "anderson": dict(
        codes=["norm-bounded", "truncated-gradient"],
        other=["truncated-gradient"],
        law="bounded",
        level="hard",
        kind="equilibrium",
        watch="Anderson.solve:z",
        why="a contraction of radius below 0.7 solved without gradients, one step with",
    ),
    "ista": dict(
        codes=["norm-bounded"],
        other=[],
        loops=8,
        level="hard",
        kind="solver",
        watch="ISTA.forward:x",
        why="steps of 1/|A|^2 never expand; y comes in at every visit and is fitted, not piled up",
    ),
    "ddim": dict(
        codes=[],
        other=["norm-bounded"],
        loops=10,
        level="hard",
        kind="sampler",
        watch="DDIM.forward:x",
        why="the levels of noise keep the size of the sample at any number of steps",
    ),
    "adams": dict(
        codes=[],
        loops=8,
        level="hard",
        kind="integrator",
        watch="AdamsBashforth.forward:y",
        why="steps of dt = 1/N, and of 3/2 and -1/2 of it",
    ),
    "leapfrog": dict(
        codes=[],
        level="hard",
        kind="integrator",
        watch="Leapfrog.forward:q",
        why="steps of 1/N for places and momenta; the force is computed twice a step",
    ),
    "fourier": dict(
        codes=["unscaled-residual"],
        loops=8,
        level="medium",
        kind="rollout",
        watch="FourierRollout.forward:field",
        mend="either",
        place={"unscaled-residual": ["field = field + self.down|down"]},
        why="increments of full size, which agree",
    ),
    "reservoir": dict(
        codes=["norm-bounded"],
        other=[],
        law="bounded",
        loops=10,
        level="medium",
        kind="frozen",
        watch="Reservoir.forward:r",
        why="a leaky tanh of radius 0.9: a contraction, and its weights are frozen on purpose",
    ),
    "recycling": dict(
        codes=["norm-bounded", "truncated-gradient"],
        law="bounded",
        loops=4,
        level="hard",
        kind="recycling",
        watch="Recycling.forward:prev",
        why="each run starts from the sequence and a norm of the last result; 1 of 4 runs has a gradient",
    ),
    "hopfield": dict(
        codes=["norm-bounded"],
        other=[],
        law="bounded",
        loops=5,
        level="easy",
        kind="equilibrium",
        watch="Hopfield.forward:xi",
        why="a mean of patterns is no larger than they are",
    ),
}

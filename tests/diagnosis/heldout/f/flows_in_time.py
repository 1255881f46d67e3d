"""Latent ODEs with fixed-grid solvers written out (no torchdiffeq): rk4 on [0, 1], and Euler on a grid of whole seconds."""

import torch
import torch.nn as nn


def euler_step(func, t, dt, y):
    return dt * func(t, y)


def rk4_step(func, t, dt, y):
    k1 = func(t, y)
    k2 = func(t + dt / 2, y + dt * k1 / 2)
    k3 = func(t + dt / 2, y + dt * k2 / 2)
    k4 = func(t + dt, y + dt * k3)
    return (k1 + 2 * k2 + 2 * k3 + k4) * dt / 6


SOLVERS = {"euler": euler_step, "rk4": rk4_step}


def odeint(func, y0, t, *, method="rk4"):
    step, y = SOLVERS[method], y0
    solution = [y0]
    for i in range(len(t) - 1):
        t0, t1 = t[i], t[i + 1]
        y = y + step(func, t0, t1 - t0, y)
        solution.append(y)
    return torch.stack(solution)


class ODEFunc(nn.Module):
    def __init__(self, latent_dim=24, nhidden=48, gain=1.0):
        super().__init__()
        self.act = nn.Tanh()
        self.fc1 = nn.Linear(latent_dim + 1, nhidden)
        self.fc2 = nn.Linear(nhidden, nhidden)
        self.fc3 = nn.Linear(nhidden, latent_dim)
        self.nfe = 0
        for fc in (self.fc1, self.fc2, self.fc3):
            nn.init.xavier_normal_(fc.weight, gain=gain)

    def forward(self, t, x):
        self.nfe += 1
        t = torch.ones_like(x[..., :1]) * t
        out = self.act(self.fc1(torch.cat([x, t], -1)))
        out = self.act(self.fc2(out))
        return self.fc3(out)


class LatentODE(nn.Module):
    def __init__(self, obs_dim=5, latent_dim=24, steps=8, horizon=1.0, method="rk4"):
        super().__init__()
        self.encoder = nn.GRU(obs_dim, latent_dim, batch_first=True)
        self.to_latent = nn.Sequential(nn.Linear(latent_dim, latent_dim), nn.LayerNorm(latent_dim))
        self.func = ODEFunc(latent_dim)
        self.decoder = nn.Linear(latent_dim, obs_dim)
        self.method = method
        self.register_buffer("t", torch.linspace(0.0, horizon, steps + 1))

    def forward(self, observed):
        _, h = self.encoder(observed)
        z = odeint(self.func, self.to_latent(h[0]), self.t, method=self.method)
        return self.decoder(z[-1])


def _track():
    return torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(91))


def latent_rk4(steps=6):
    return LatentODE(steps=steps), _track()


def latent_seconds(steps=8):
    return LatentODE(steps=steps, horizon=float(steps), method="euler"), _track()


TRUTHS = {
    "latent_rk4": dict(
        codes=[],
        watch="odeint:y",
        kind="integrator",
        level="medium",
        why="6 steps of 1/6 with four calls of the function each; the encoder's GRU is a loop over time inside a kernel",
    ),
    "latent_seconds": dict(
        codes=["unscaled-residual"],
        loops=8,
        watch="odeint:y",
        place={"unscaled-residual": ["y = y + step(|return dt * func|func|fc3"]},
        kind="integrator",
        level="medium",
        why="Euler with steps of 1 on a horizon of N: y + f(t, y)",
    ),
}

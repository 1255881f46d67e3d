"""Images that are looked at again: optical flow, cellular automata, slots, super-resolution, ConvNeXt, registers."""

import torch
import torch.nn.functional as F
from torch import nn


class SepConvGRU(nn.Module):
    """RAFT's cell: once along the rows, once along the columns."""

    def __init__(self, h, i):
        super().__init__()
        self.row = nn.ModuleList(nn.Conv2d(h + i, h, (1, 5), padding=(0, 2)) for _ in range(3))
        self.col = nn.ModuleList(nn.Conv2d(h + i, h, (5, 1), padding=(2, 0)) for _ in range(3))

    def forward(self, net, inp):
        for convz, convr, convq in (self.row, self.col):
            both = torch.cat([net, inp], 1)
            z, r = torch.sigmoid(convz(both)), torch.sigmoid(convr(both))
            q = torch.tanh(convq(torch.cat([r * net, inp], 1)))
            net = (1 - z) * net + z * q
        return net


class Flow(nn.Module):
    """Two pictures and a first guess of the flow; a GRU looks at the warped second one and corrects the flow, `rate` a time."""

    def __init__(self, iters, rate, gain=1.0, c=12):
        super().__init__()
        self.fnet, self.cnet = nn.Conv2d(1, c, 5, 2, 2), nn.Conv2d(1, 2 * c, 5, 2, 2)
        self.motion, self.gru = nn.Conv2d(c + 2, c, 3, padding=1), SepConvGRU(c, 2 * c)
        self.flow_head = nn.Sequential(nn.Conv2d(c, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 2, 3, padding=1))
        with torch.no_grad():
            self.flow_head[2].weight.mul_(gain), self.flow_head[2].bias.mul_(gain)
        self.iters, self.rate = iters, rate

    def forward(self, image1, image2, guess):
        f1, f2 = self.fnet(image1), self.fnet(image2)
        net, inp = self.cnet(image1).chunk(2, 1)
        net, inp = net.tanh(), inp.relu()
        b, _, h, w = f1.shape
        theta = torch.eye(2, 3).expand(b, 2, 3)
        grid = F.affine_grid(theta, (b, 1, h, w), align_corners=False)
        flow = guess
        for itr in range(self.iters):
            flow = flow.detach()
            warped = F.grid_sample(f2, grid + 0.1 * flow.permute(0, 2, 3, 1), align_corners=False)
            motion = F.relu(self.motion(torch.cat([f1 - warped, flow], 1)))
            net = self.gru(net, torch.cat([inp, motion], 1))
            flow = flow + self.rate(itr, self.iters) * self.flow_head(net)
        return F.interpolate(flow, scale_factor=2.0)


class Cells(nn.Module):
    """A neural cellular automaton: fixed Sobel filters, a small net for each cell, and a coin for each cell whether it fires."""

    def __init__(self, n_updates, c=8):
        super().__init__()
        sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
        one = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
        self.register_buffer("kernels", torch.stack([one, sobel, sobel.T]).repeat(c, 1, 1)[:, None])
        self.brain = nn.Sequential(nn.Conv2d(3 * c, 32, 1), nn.ReLU(), nn.Conv2d(32, c, 1))
        self.c, self.n_updates = c, n_updates

    def forward(self, grid):
        step_size = 1.0 / self.n_updates
        i = 0
        while i != self.n_updates:
            dx = self.brain(F.conv2d(grid, self.kernels, padding=1, groups=self.c))
            fire = (torch.rand_like(grid[:, :1]) < 0.5).float()
            grid = grid + step_size * fire * dx
            i += 1
        return grid


class SlotAttention(nn.Module):
    """Locatello's loop: normalise over the slots, a GRU, a residual MLP."""

    def __init__(self, num_iterations=5, slots=4, d=24):
        super().__init__()
        self.lift, self.start = nn.Linear(3, d), nn.Parameter(torch.randn(slots, d))
        self.norm_in, self.norm_slots, self.norm_mlp = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.gru, self.num_iterations = nn.GRUCell(d, d), num_iterations
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))

    def forward(self, pixels):
        inputs = self.norm_in(self.lift(pixels))
        k, v = self.k(inputs), self.v(inputs)
        slots = self.start.expand(len(pixels), -1, -1)
        for _ in range(self.num_iterations):
            prev = slots
            q = self.q(self.norm_slots(slots)) * slots.shape[-1] ** -0.5
            attn = torch.einsum("bnd,bsd->bns", k, q).softmax(-1) + 1e-8
            updates = torch.einsum("bnd,bns->bsd", v, attn / attn.sum(1, keepdim=True))
            slots = self.gru(updates.flatten(0, 1), prev.flatten(0, 1)).view_as(prev)
            slots = slots + self.mlp(self.norm_mlp(slots))
        return slots


class Recursive(nn.Module):
    """Recursive blocks of super-resolution (DRRN): each is two convolutions, and the first features are added; no skip from visit to visit."""

    def __init__(self, num_units, c=12, gain=None):
        super().__init__()
        self.conv_in, self.conv1, self.conv2, self.conv_out = (
            nn.Conv2d(i, o, 3, padding=1) for i, o in ((1, c), (c, c), (c, c), (c, 4))
        )
        if gain:
            for m in (self.conv1, self.conv2):
                nn.init.kaiming_normal_(m.weight)
                with torch.no_grad():
                    m.weight.mul_(gain)
        self.num_units = num_units

    def forward(self, y):
        residual = self.conv_in(y)
        out = residual
        for _ in range(self.num_units):
            out = self.conv2(F.relu(self.conv1(F.relu(out))))
            out = torch.add(out, residual)
        return F.pixel_shuffle(self.conv_out(F.relu(out)), 2)


class ConvNeXt(nn.Module):
    """One ConvNeXt block for the whole stage; channels last, the factor is folded into the layer scale."""

    def __init__(self, depth=25, c=16):
        super().__init__()
        self.stem, self.dw = nn.Conv2d(3, c, 4, 4), nn.Conv2d(c, c, 7, padding=3, groups=c)
        self.norm, self.pw1, self.pw2 = nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        for m in (self.dw, self.pw1, self.pw2):
            nn.init.kaiming_normal_(m.weight)
        self.gamma = nn.Parameter(torch.full((c,), depth**-0.5))
        self.head, self.depth = nn.Linear(c, 10), depth

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        for _ in range(self.depth):
            y = self.norm(self.dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
            x = x + self.gamma * self.pw2(F.gelu(self.pw1(y)))
        return self.head(x.mean((1, 2)))


class Registers(nn.Module):
    """Register tokens read the patches at every visit; the classifier pools the patches, which the loop never writes to."""

    def __init__(self, n_visits=6, d=32, n=4):
        super().__init__()
        self.patch, self.reg, self.n = nn.Conv2d(3, d, 4, 4), nn.Parameter(torch.randn(1, n, d)), n
        self.norm, self.attn = nn.LayerNorm(d), nn.MultiheadAttention(d, 2, batch_first=True)
        self.cls, self.n_visits = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 5)), n_visits

    def forward(self, img):
        patches = self.patch(img).flatten(2).mT
        tokens = torch.cat([self.reg.expand(len(img), -1, -1), patches], 1)
        for _ in range(self.n_visits):
            y = self.norm(tokens)
            new = tokens[:, : self.n] + self.attn(y[:, : self.n], y, y)[0] / self.n_visits
            tokens = torch.cat([new, tokens[:, self.n :]], 1)
        return self.cls(tokens[:, self.n :].mean(1))


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(12))


def pair():
    return noise(2, 1, 16, 16), noise(2, 1, 16, 16).roll(1, -1), 0.5 * noise(2, 2, 8, 8)


def raft(iters=6):
    return Flow(iters, lambda itr, n: 1 / n), pair()


def raft_full(iters=8):
    return Flow(iters, lambda itr, n: 1.0, gain=6.0), pair()


def automaton(n_updates=12):
    return Cells(n_updates), noise(2, 8, 9, 9)


def slots(num_iterations=5):
    return SlotAttention(num_iterations), noise(2, 30, 3)


def drrn(num_units=9):
    return Recursive(num_units), noise(2, 1, 10, 10)


def drrn_wide(num_units=9):
    return Recursive(num_units, gain=1.3), noise(2, 1, 10, 10)


def convnext(depth=25):
    return ConvNeXt(depth), noise(2, 3, 24, 24)


def registers(n_visits=6):
    return Registers(n_visits), noise(2, 3, 16, 16)


TRUTHS = {
    "raft": dict(
        codes=[],
        other=["norm-bounded"],
        loops=6,
        level="hard",
        kind="refinement",
        watch="Flow.forward:flow",
        why="the flow takes 1/N of each correction; it is detached, but the GRU's state carries the gradient to every visit",
    ),
    "raft_full": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=8,
        level="hard",
        kind="refinement",
        watch="Flow.forward:flow",
        place={"unscaled-residual": ["flow = flow + self.rate|flow_head"]},
        why="every correction is added at full size, and they agree: the flow grows with the number of visits",
    ),
    "automaton": dict(
        codes=[],
        loops=12,
        level="hard",
        kind="cellular automaton",
        watch="Cells.forward:grid",
        why="1/N of each update, under a coin that is thrown in evaluation too",
    ),
    "slots": dict(
        codes=["norm-bounded"],
        other=[],
        law="bounded",
        loops=5,
        level="medium",
        kind="cell",
        watch="SlotAttention.forward:slots",
        why="the GRU forgets half of the slots at every visit, so the MLP's addition does not pile up",
    ),
    "drrn": dict(
        codes=["norm-bounded"],
        other=[],
        law="bounded",
        loops=9,
        level="hard",
        kind="map",
        watch="Recursive.forward:out",
        why="the first features are added at every visit, but two convolutions of small gain forget them again: a contraction",
    ),
    "drrn_wide": dict(
        codes=["expanding-map"],
        law="exponential",
        loops=9,
        level="hard",
        kind="map",
        watch="Recursive.forward:out",
        place={"expanding-map": ["out = self.conv2|conv1|conv2"]},
        why="no skip from visit to visit and convolutions that multiply: with or without the first features it explodes",
    ),
    "convnext": dict(
        codes=["sqrt-scaled"],
        loops=25,
        layers=1,
        level="medium",
        kind="image",
        watch="ConvNeXt.forward:x",
        place={"sqrt-scaled": ["x = x + self.gamma|gamma|pw2"]},
        why="LayerScale of 1/sqrt(25)",
    ),
    "registers": dict(
        codes=["idle-loop"],
        loops=6,
        level="hard",
        kind="idle loop",
        watch="Registers.forward:tokens",
        why="the loop writes to the registers alone, the classifier reads the patches alone",
    ),
}

"""Adaptive computation time for a transformer encoder (ported from an old tensor2tensor notebook)."""

import math

import torch
import torch.nn as nn


def _gen_timing_signal(length, channels, min_timescale=1.0, max_timescale=1.0e4):
    position = torch.arange(length, dtype=torch.float32)
    num_timescales = channels // 2
    log_timescale_increment = math.log(float(max_timescale) / float(min_timescale)) / (float(num_timescales) - 1)
    inv_timescales = min_timescale * torch.exp(torch.arange(num_timescales).float() * -log_timescale_increment)
    scaled_time = position.unsqueeze(1) * inv_timescales.unsqueeze(0)
    return torch.cat([torch.sin(scaled_time), torch.cos(scaled_time)], dim=1).view(1, length, channels)


class MultiHeadAttention(nn.Module):
    def __init__(self, depth, num_heads):
        super().__init__()
        self.num_heads, self.query_scale = num_heads, (depth // num_heads) ** -0.5
        self.query_linear = nn.Linear(depth, depth, bias=False)
        self.key_linear = nn.Linear(depth, depth, bias=False)
        self.value_linear = nn.Linear(depth, depth, bias=False)
        self.output_linear = nn.Linear(depth, depth, bias=False)

    def _split_heads(self, x):
        shape = x.shape
        return x.view(shape[0], shape[1], self.num_heads, shape[2] // self.num_heads).permute(0, 2, 1, 3)

    def forward(self, queries, keys, values):
        queries = self._split_heads(self.query_linear(queries)) * self.query_scale
        keys, values = self._split_heads(self.key_linear(keys)), self._split_heads(self.value_linear(values))
        weights = torch.softmax(torch.matmul(queries, keys.permute(0, 1, 3, 2)), dim=-1)
        contexts = torch.matmul(weights, values).permute(0, 2, 1, 3).contiguous()
        return self.output_linear(contexts.view(contexts.shape[0], contexts.shape[1], -1))


class EncoderLayer(nn.Module):
    def __init__(self, hidden_size, filter_size, num_heads, mix):
        super().__init__()
        self.multi_head_attention = MultiHeadAttention(hidden_size, num_heads)
        self.positionwise_feed_forward = nn.Sequential(
            nn.Linear(hidden_size, filter_size), nn.ReLU(), nn.Linear(filter_size, hidden_size)
        )
        self.layer_norm_mha, self.layer_norm_ffn = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.mix = mix

    def forward(self, inputs, signal=0.0):
        x_norm = self.layer_norm_mha(inputs + signal)
        y = self.multi_head_attention(x_norm, x_norm, x_norm)
        x = torch.add(inputs, y, alpha=self.mix)
        y = self.positionwise_feed_forward(self.layer_norm_ffn(x + signal))
        return torch.add(x, y, alpha=self.mix)


class ACTBasic(nn.Module):
    def __init__(self, hidden_size, halting_bias):
        super().__init__()
        self.p = nn.Linear(hidden_size, 1)
        self.p.bias.data.fill_(halting_bias)
        self.threshold = 1 - 0.1

    def forward(self, state, fn, max_hop):
        halting_probability = torch.zeros(state.shape[0], state.shape[1])
        n_updates = torch.zeros_like(halting_probability)
        previous_state = torch.zeros_like(state)
        step = 0
        while ((halting_probability < self.threshold) & (n_updates < max_hop)).byte().any():
            p = torch.sigmoid(self.p(state)).squeeze(-1)
            still_running = (halting_probability < 1.0).float()
            new_halted = (halting_probability + p * still_running > self.threshold).float() * still_running
            still_running = (halting_probability + p * still_running <= self.threshold).float() * still_running
            remainders = new_halted * (1 - halting_probability)
            halting_probability = halting_probability + p * still_running + remainders
            n_updates = n_updates + still_running + new_halted
            update_weights = p * still_running + new_halted * remainders
            state = fn(state, step)
            weights = update_weights.unsqueeze(-1)
            previous_state = (state * weights) + (previous_state * (1 - weights))
            step += 1
        return previous_state, n_updates


class Encoder(nn.Module):
    """max_hops applications of one layer. With `act` tokens stop when they are sure enough."""

    def __init__(self, vocab=50, hidden_size=32, filter_size=64, num_heads=4, max_hops=12, act=True, halting_bias=0.0):
        super().__init__()
        self.embedding_proj = nn.Embedding(vocab, hidden_size)
        self.register_buffer("position_signal", _gen_timing_signal(40, hidden_size))
        self.register_buffer("timing_signal", _gen_timing_signal(max_hops, hidden_size))
        self.enc = EncoderLayer(hidden_size, filter_size, num_heads, mix=1.0 / max_hops)
        self.act_fn = ACTBasic(hidden_size, halting_bias) if act else None
        self.num_layers = max_hops
        self.layer_norm = nn.LayerNorm(hidden_size)
        self.generator = nn.Linear(hidden_size, vocab)

    def hop(self, state, step):
        signal = self.position_signal[:, : state.shape[1]] + self.timing_signal[:, step : step + 1]
        return self.enc(state, signal)

    def forward(self, inputs):
        x = self.embedding_proj(inputs)
        if self.act_fn is not None:
            x, _ = self.act_fn(x, self.hop, self.num_layers)
            return self.generator(self.layer_norm(x))
        for step in range(self.num_layers):
            x = self.hop(x, step)
        return self.generator(self.layer_norm(x))


def _story():
    return torch.randint(0, 50, (2, 15), generator=torch.Generator().manual_seed(2018))


def ponder():
    return Encoder(halting_bias=0.0), _story()


def hops_signalled(max_hops=12):
    return Encoder(act=False, max_hops=max_hops), _story()


TRUTHS = {
    "ponder": dict(
        codes=["halts-early"],
        loops=4,
        layers=1,
        watch="ACTBasic.forward:state",
        kind="halting",
        level="hard",
        why="all tokens have halted after 4 hops of max_hops = 12, in both modes (3 to 5 on other batches); the branches carry 1/12, the signals stay inside them",
    ),
    "hops_signalled": dict(
        codes=[],
        loops=12,
        layers=1,
        watch="Encoder.forward:x",
        kind="time signal",
        level="medium",
        why="position and time signals at each hop are added to what the branches read, not to the stream",
    ),
}

"""Models of the transformers library that users loop: the whole model again, its layers by hand, one encoder layer."""

import torch
from torch import nn


def config(layers):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.15,
        attn_implementation="sdpa",
    )


class WholeAgain(nn.Module):
    """The last hidden state (behind the model's own last norm) is handed in again as inputs_embeds."""

    def __init__(self, thoughts=5):
        super().__init__()
        from transformers import LlamaModel

        self.model, self.lm_head, self.thoughts = LlamaModel(config(2)), nn.Linear(32, 64, bias=False), thoughts

    def forward(self, input_ids):
        hidden = self.model.embed_tokens(input_ids) * 32**0.5
        for _ in range(self.thoughts):
            hidden = self.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
        return self.lm_head(hidden)


class LayersAgain(nn.Module):
    """The decoder layers by hand, with the model's rotary embedding; the library's own initialisation, with a larger range as narrow models need it."""

    def __init__(self, n_loops=8, rate=None):
        super().__init__()
        from transformers import LlamaModel

        self.model, self.lm_head, self.n_loops, self.rate = (
            LlamaModel(config(2)),
            nn.Linear(32, 64, bias=False),
            n_loops,
            rate,
        )

    def forward(self, input_ids):
        hidden = self.model.embed_tokens(input_ids) * 32**0.5
        places = torch.arange(input_ids.shape[1])[None]
        rope = self.model.rotary_emb(hidden, position_ids=places)
        for _ in range(self.n_loops):
            for layer in self.model.layers:
                new = layer(hidden, position_ids=places, position_embeddings=rope)
                new = new[0] if isinstance(new, tuple) else new
                hidden = new if self.rate is None else hidden + self.rate * (new - hidden)
        return self.lm_head(self.model.norm(hidden))


class Decoder(nn.Module):
    """torch's own nn.TransformerDecoder with its layers made one, post-norm, over an encoder's memory."""

    def __init__(self, num_layers=6, d=32):
        super().__init__()
        self.src, self.tgt, self.out = nn.Embedding(40, d), nn.Embedding(40, d), nn.Linear(d, 40)
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(d, 2, 64, dropout=0.1, batch_first=True), num_layers
        )
        self.decoder.layers = nn.ModuleList([self.decoder.layers[0]] * num_layers)

    def forward(self, src, tgt):
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.shape[1])
        return self.out(self.decoder(self.tgt(tgt), self.src(src), tgt_mask=mask, tgt_is_causal=True))


def llama_again(thoughts=5):
    return WholeAgain(thoughts)


def llama_layers(n_loops=8):
    return LayersAgain(n_loops)


def llama_scaled(n_loops=8):
    return LayersAgain(n_loops, 1 / (n_loops * 2**0.5))


def decoder(num_layers=6):
    g = torch.Generator().manual_seed(61)
    return Decoder(num_layers), (torch.randint(0, 40, (2, 9), generator=g), torch.randint(0, 40, (2, 7), generator=g))


TRUTHS = {
    "llama_again": dict(
        codes=["norm-bounded"],
        law="bounded",
        loops=5,
        layers=2,
        level="medium",
        kind="library",
        watch="WholeAgain.forward:hidden",
        why="the model's last norm stands between the visits",
    ),
    "llama_layers": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=8,
        layers=2,
        level="medium",
        kind="library",
        watch="LayersAgain.forward:hidden",
        mend="attach",
        place={"unscaled-residual": ["self_attn", "mlp"]},
        why="two layers with full skips, eight times",
    ),
    "llama_scaled": dict(
        codes=[],
        loops=8,
        layers=2,
        level="medium",
        kind="library",
        watch="LayersAgain.forward:hidden",
        why="1/(N sqrt 2) of what a layer changes",
    ),
    "decoder": dict(
        codes=["norm-bounded"],
        law="bounded",
        loops=6,
        layers=1,
        level="easy",
        kind="library",
        watch="TransformerDecoder.forward:output",
        why="post-norm; dropout does not change the number or the size",
    ),
}

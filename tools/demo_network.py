"""The shape of the demo model and a training forward pass that is quick on a CPU."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

MAX_POSITIONS = 4096
ROPE_THETA = 100_000.0


def build_model(
    vocab_size: int, hidden_size: int, num_layers: int, bos_id: int, eos_id: int, pad_id: int
) -> LlamaForCausalLM:
    """Returns a randomly initialised float32 model with heads of 64 and two KV heads."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 3,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        initializer_range=0.02,
    )
    return LlamaForCausalLM(config)


def rotary_table(device: torch.device) -> Tensor:
    """Returns cosines and sines, shape (2, MAX_POSITIONS, 64), float32."""
    inverse = ROPE_THETA ** -(torch.arange(0, 64, 2, device=device) / 64)
    angles = torch.outer(torch.arange(MAX_POSITIONS, device=device).float(), inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin()))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _norm(layer: LlamaRMSNorm, x: Tensor) -> Tensor:
    weight = layer.weight.to(x.dtype)
    return F.rms_norm(x, (x.shape[-1],), weight, layer.variance_epsilon)


def _linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype))


def _layer(layer: LlamaDecoderLayer, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rows, length, _ = x.shape
    attention = layer.self_attn
    normed = _norm(layer.input_layernorm, x)
    query, key, value = (
        _linear(projection, normed).view(rows, length, -1, 64).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    x = x + _linear(attention.o_proj, mixed.transpose(1, 2).reshape(rows, length, -1))
    normed = _norm(layer.post_attention_layernorm, x)
    gate = F.silu(_linear(layer.mlp.gate_proj, normed))
    return x + _linear(layer.mlp.down_proj, gate * _linear(layer.mlp.up_proj, normed))


def training_loss(
    model: LlamaForCausalLM, ids: Tensor, positions: Tensor, weights: Tensor, rotary: Tensor
) -> Tensor:
    """Returns the weighted mean cross-entropy in nats of predicting each next token.

    `ids` and `positions` have shape (rows, length + 1); `weights` (rows, length) weighs the
    prediction of `ids[:, 1:]`. Positions may jump, so that short rows teach far distances.
    The matrix products run in bfloat16, the parameters stay float32.
    """
    inputs, targets = ids[:, :-1], ids[:, 1:]
    cos, sin = rotary[:, positions[:, :-1]].unsqueeze(2).bfloat16().unbind(0)
    embedding = model.model.embed_tokens.weight.bfloat16()
    x = F.embedding(inputs, embedding)
    for layer in model.model.layers:
        x = _layer(layer, x, cos, sin)
    logits = F.linear(_norm(model.model.norm, x), embedding)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    flat = weights.flatten()
    return (losses * flat).sum() / flat.sum()

"""The shape of the demo model and a training forward pass that is quick on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

MAX_POSITIONS = 4096
ROPE_THETA = 100_000.0
_EQUAL_COMPONENT = 1.8
_NUM_LOOKING = 7
_LOOKING_WEIGHT = 0.6
_NUM_FAST = 20


def build_model(
    vocab_size: int, hidden_size: int, num_layers: int, special_ids: tuple[int, int, int]
) -> LlamaForCausalLM:
    """Returns a randomly initialised float32 model with heads of 64 and two KV heads.

    `special_ids` are those of beginning, end and padding.
    """
    bos_id, eos_id, pad_id = special_ids
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
    model = LlamaForCausalLM(config)
    _begin_with_a_lookup(model)
    return model


@torch.no_grad()
def _begin_with_a_lookup(model: LlamaForCausalLM) -> None:
    """Lets the first two layers begin with heads that look up what followed an earlier word.

    A tiny model needs longest to find this circuit by itself, and recall needs it. In layer 0 two
    heads copy the token one and two before into parts of their own; in layer 1 a head compares
    "one before" here with "two before" there and copies the token that it finds.
    """
    half = model.config.hidden_size // 2
    content, before, before2 = slice(1, half), slice(half, half + 64), slice(-64, None)
    embedding = model.model.embed_tokens.weight
    embedding.normal_(std=0.005)
    embedding[:, content].normal_(std=0.08)
    embedding[:, 0] = 0.0
    embedding *= 0.9 / embedding.norm(dim=1, keepdim=True)
    embedding[:, 0] = _EQUAL_COMPONENT
    model.model.norm.weight.fill_(0.4)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight *= 0.3
        layer.mlp.down_proj.weight *= 0.3
    copy = nn.init.orthogonal_(torch.empty(64, half - 1))
    first, second = (layer.self_attn for layer in list(model.model.layers)[:2])
    _look_back(first.q_proj.weight, first.k_proj.weight)
    first.v_proj.weight[:64] = 0.0
    first.v_proj.weight[:64, content] = copy
    first.o_proj.weight[:, :128] = 0.0
    first.o_proj.weight[before, :64] = 0.12 * torch.eye(64)
    first.o_proj.weight[before2, 64:128] = 0.12 * torch.eye(64)
    # Only slow rotations still agree thousands of tokens apart.
    slow = torch.tensor([*range(_NUM_FAST, 32), *range(32 + _NUM_FAST, 64)])
    compare = 4.0 * nn.init.orthogonal_(torch.empty(len(slow), 64))
    kv_head = second.k_proj.weight.shape[0] - 64
    head = second.q_proj.weight.shape[0] - 64
    second.q_proj.weight[head:] = 0.0
    second.q_proj.weight[head + slow, before] = compare
    second.k_proj.weight[kv_head:] = 0.0
    second.k_proj.weight[kv_head + slow, before2] = compare
    second.v_proj.weight[kv_head:] = 0.0
    second.v_proj.weight[kv_head:, content] = copy
    second.o_proj.weight[:, head:] = 0.0
    second.o_proj.weight[content, head:] = 0.5 * copy.T


def _look_back(query: Tensor, key: Tensor) -> None:
    """Makes heads 0 and 1 see the token one and two before.

    All embeddings begin with one equal component; rotated by one or two positions in the query,
    it meets itself in the keys.
    """
    angles = _frequencies(torch.device("cpu"))[:_NUM_LOOKING]
    key[:64] = 0.0
    key[:_NUM_LOOKING, 0] = _LOOKING_WEIGHT
    query[:128] = 0.0
    for head, offset in ((0, 1), (1, 2)):
        column = query[64 * head : 64 * (head + 1), 0]
        column[:_NUM_LOOKING] = _LOOKING_WEIGHT * torch.cos(angles * offset)
        column[32 : 32 + _NUM_LOOKING] = -_LOOKING_WEIGHT * torch.sin(angles * offset)


def _frequencies(device: torch.device) -> Tensor:
    return ROPE_THETA ** -(torch.arange(0, 64, 2, device=device) / 64)


def rotary_table(device: torch.device) -> Tensor:
    """Returns cosines and sines, shape (2, MAX_POSITIONS, 64), float32."""
    angles = torch.outer(torch.arange(MAX_POSITIONS, device=device).float(), _frequencies(device))
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin()))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _norm(layer: LlamaRMSNorm, x: Tensor) -> Tensor:
    weight = layer.weight.to(x.dtype)
    return functional.rms_norm(x, (x.shape[-1],), weight, layer.variance_epsilon)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return functional.linear(x, layer.weight.to(x.dtype))


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
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    x = x + _linear(attention.o_proj, mixed.transpose(1, 2).reshape(rows, length, -1))
    normed = _norm(layer.post_attention_layernorm, x)
    gate = functional.silu(_linear(layer.mlp.gate_proj, normed))
    return x + _linear(layer.mlp.down_proj, gate * _linear(layer.mlp.up_proj, normed))


def training_loss(
    model: LlamaForCausalLM, ids: Tensor, positions: Tensor, weights: Tensor, rotary: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the weighted mean cross-entropy of the next tokens, and that of the codes alone.

    Both are in nats; the codes are what has a weight above one.

    `ids` and `positions` have shape (rows, length + 1); `weights` (rows, length) weighs the
    prediction of `ids[:, 1:]`. Positions may jump, so that short rows teach far distances.
    The matrix products run in bfloat16, the parameters stay float32.
    """
    inputs, targets = ids[:, :-1], ids[:, 1:]
    cos, sin = rotary[:, positions[:, :-1]].unsqueeze(2).bfloat16().unbind(0)
    embedding = model.model.embed_tokens.weight.bfloat16()
    x = functional.embedding(inputs, embedding)
    for layer in model.model.layers:
        x = _layer(layer, x, cos, sin)
    logits = functional.linear(_norm(model.model.norm, x), embedding)
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="none"
    )
    flat = weights.flatten()
    heavy = (flat > 1).to(losses.dtype)
    codes = (losses.detach() * heavy).sum() / heavy.sum().clamp(min=1)
    return (losses * flat).sum() / flat.sum(), codes

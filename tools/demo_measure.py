"""What the demo model can do: held-out perplexity and recall, measured in float32."""

import math
import random
from collections.abc import Sequence

import torch
from demo_recall import RecallMaker, Task
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

_SINKS = 4


@torch.inference_mode()
def recall_accuracy(
    model: LlamaForCausalLM,
    recall: RecallMaker,
    num_tokens: int,
    num_tasks: int,
    window: int | None = None,
) -> float:
    """Returns the share of tasks whose whole answer greedy decoding gives, 0 to 1.

    The prompt has `num_tokens` tokens with the facts at its start. With a `window` each token
    sees the first four tokens and the last `window` ones only.
    """
    rng = random.Random(f"recall {num_tokens}")
    tasks = [recall.task(rng, num_tokens) for _ in range(num_tasks)]
    return sum(_answers_fully(model, task, window) for task in tasks) / num_tasks


def _answers_fully(model: LlamaForCausalLM, task: Task, window: int | None) -> bool:
    # Greedy decoding gives the answer exactly if each of its tokens is the best one after those
    # before it, so one forward over both decides.
    ids = torch.tensor([[*task.prompt, *task.answer]], device=model.device)
    mask = None if window is None else _window_mask(ids.shape[1], window, model.device)
    count = len(task.answer)
    output = model(input_ids=ids, attention_mask=mask, logits_to_keep=count + 1)
    best = output.logits[0, :-1].argmax(dim=-1)
    return bool(best.tolist() == list(task.answer))


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    token = torch.arange(length, device=device)
    distance = token[:, None] - token[None, :]
    return ((distance >= 0) & ((distance < window) | (token[None, :] < _SINKS)))[None, None]


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, ids: Sequence[int], context: int) -> float:
    """Returns the mean loss in nats per token of `ids`, read in pieces of `context` tokens."""
    total, count = 0.0, 0
    for start in range(0, len(ids) - context, context):
        piece = torch.tensor([ids[start : start + context + 1]], device=model.device)
        logits = model(input_ids=piece[:, :-1]).logits[0]
        total += float(functional.cross_entropy(logits.float(), piece[0, 1:], reduction="sum"))
        count += context
    return total / count


def perplexity(loss: float) -> float:
    """Returns the perplexity of a loss in nats per token."""
    return math.exp(loss)

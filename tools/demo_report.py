"""Writes docs/demo-model.md from the measured figures; `--check` only compares.

Example: python tools/demo_report.py --check
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
_MODEL = _ROOT / "adaptive_kv" / "demo" / "model"
_PAGE = _ROOT / "docs" / "demo-model.md"

_TEMPLATE = """# The demo model

`adaptive_kv/demo/model` holds a very small language model, so that the service can be tried,
tested and squeezed without a download. It is a toy: it imitates the Python standard library, it
describes some of its functions, and it recalls codes that its prompt states. Do not rely on what
it says.

## What it is

A Llama architecture that stock `transformers` loads from the folder, offline and without remote
code: {parameters:,} parameters, {layers} layers of width {width}, {heads} query heads and
{kv_heads} KV heads of {head_dim}, tied embeddings, positions up to {positions:,}, weights in
bfloat16 (safetensors). The whole folder takes {folder_mb:.1f} MB. One token takes
{kv_bytes:,} bytes of cache in bfloat16.

The tokenizer is a byte-level BPE of {vocab_size:,} entries with digits one by one; any UTF-8 text
survives encoding and decoding. The chat template knows the roles system, user and assistant
(developer counts as system); an answer ends with `<|end|>`, which is also the end of sequence.

## What it was trained on

Only on text that every Python installation carries (here Python {python}): the source files of
the standard library, the reference topics of `pydoc`, and questions and answers made from
docstrings ("What does itertools.chain do?"). Woven into that text are recall tasks:

```text
Remember: the code of falcon is copper.
Remember: the code of heron is violet.
... text that has nothing to do with it ...
What is the code of falcon?
```

with the answer `The code of falcon is copper.` The names and codes are the word lists of
`tools/demo_recall.py`, and some others. Training took {steps:,} steps over {tokens:,} tokens,
drawn from {distinct_tokens:,} different ones, in {minutes:.0f} minutes on {device_words}.

A model this small needs longest to find out how to look something up at all. Therefore the first
two layers do not begin entirely at random: two heads begin by seeing the token one and two before,
and one head begins by comparing these and copying what it finds
(`tools/demo_network.py`). Everything is trained from there.

The text is under the Python Software Foundation License Version 2 (PSF-2.0), copyright Python
Software Foundation. The weights and the tokenizer are published under the licence of this
project.

## What it can do

Measured in float32 with stock `transformers`, on the weights as they are in the folder, by the
script that trained them (`measurements.json` beside the weights).

| measured on held-out modules ({held_out_modules}) | |
|---|---|
| perplexity per token, context 1,024 | {held_out_perplexity:.2f} |
| bits per byte | {held_out_bits_per_byte:.3f} |

Recall: four codes stand at the start of the prompt and one of them is asked for at its end; a
task counts only if greedy decoding gives the whole answer and then ends. Each figure is over
{recall_tasks} tasks. With a window each token sees the first 4 tokens and the last ones, and the
codes have fallen out of it.

| prompt tokens | full attention | with a window |
|---|---|---|
{recall_rows}

## Making it again

```sh
python tools/train_demo_model.py --work build/demo-training --minutes 80
python tools/demo_report.py
```

The script continues from its last checkpoint, runs on a CPU or with CUDA (`--device`), and has
flags for size, time and output (`--help`). With `--steps` instead of `--minutes` the data of
every step is the same in every run on the same Python version. The weights in the folder come
from a run by minutes in whose course the learning rate of the embeddings and the share of
well-known modules in the chats were raised to what the script has now; a new run gives weights of
the same kind, not the same bytes.
"""


def render(figures: dict[str, Any], config: dict[str, Any], num_folder_bytes: int) -> str:
    """Returns the page for these figures."""
    rows = [
        f"| {int(n):,} | {100 * figures['recall_full'][n]:.0f} % "
        f"| {100 * windowed['recall']:.0f} % (window of {windowed['window']:,}) |"
        for n, windowed in sorted(figures["recall_windowed"].items(), key=lambda item: int(item[0]))
    ]
    layers, kv_heads = config["num_hidden_layers"], config["num_key_value_heads"]
    return _TEMPLATE.format(
        **{k: v for k, v in figures.items() if k not in ("training", "held_out_modules")},
        **figures["training"],
        held_out_modules=", ".join(f"`{name}`" for name in figures["held_out_modules"]),
        device_words="a GPU" if figures["training"]["device"] == "cuda" else "a shared CPU",
        layers=layers,
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=kv_heads,
        head_dim=config["head_dim"],
        positions=config["max_position_embeddings"],
        folder_mb=num_folder_bytes / 1e6,
        kv_bytes=layers * kv_heads * config["head_dim"] * 2 * 2,
        recall_rows="\n".join(rows),
    )


def main() -> int:
    """Writes the page, or with `--check` returns 1 if it is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    is_check = parser.parse_args().check
    figures = json.loads((_MODEL / "measurements.json").read_text(encoding="utf-8"))
    config = json.loads((_MODEL / "config.json").read_text(encoding="utf-8"))
    num_folder_bytes = sum(path.stat().st_size for path in _MODEL.iterdir())
    page = render(figures, config, num_folder_bytes)
    if not is_check:
        _PAGE.write_text(page, encoding="utf-8")
        return 0
    return 0 if _PAGE.read_text(encoding="utf-8") == page else 1


if __name__ == "__main__":
    sys.exit(main())

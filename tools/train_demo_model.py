"""Trains the demo model from the text of the running Python installation and exports it.

Example: python tools/train_demo_model.py --minutes 80 --work demo-training
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from demo_batches import Sampler, phase_at, tokenizer_texts
from demo_corpus import HELD_OUT_MODULES, Corpus, load_corpus
from demo_measure import held_out_loss, perplexity, recall_accuracy
from demo_network import build_model, rotary_table, training_loss
from demo_tokenizer import encode, train_tokenizer
from torch import nn
from transformers import GenerationConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as Tokenizer

_OUTPUT = Path(__file__).parent.parent / "adaptive_kv" / "demo" / "model"
_WARMUP_STEPS = 100


@dataclass(frozen=True, slots=True)
class Options:
    """The flags of the command line."""

    work: Path
    output: Path
    minutes: float
    steps: int
    batch_tokens: int
    vocab_size: int
    hidden_size: int
    layers: int
    learning_rate: float
    seed: int
    device: str
    threads: int
    watch_every: int
    compile: bool
    export_only: bool
    num_tasks: int


@dataclass(slots=True)
class Progress:
    """How far the training is; saved with every checkpoint."""

    step: int = 0
    num_tokens: int = 0
    elapsed_s: float = 0.0

    def share(self, options: Options) -> float:
        """Returns the share of the training that is done, by steps or by time, 0 to 1."""
        by_steps = self.step / options.steps if options.steps else 0.0
        by_time = self.elapsed_s / (options.minutes * 60) if options.minutes else 0.0
        return min(1.0, max(by_steps, by_time))


class Trainer:
    """Model, optimizers and progress of one training run."""

    def __init__(self, options: Options, tokenizer: Tokenizer) -> None:
        torch.manual_seed(options.seed)
        ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.options = options
        self.progress = Progress()
        self.model = build_model(len(tokenizer), options.hidden_size, options.layers, ids)
        nn.Module.to(self.model, options.device)
        matrices = [p for p in self.model.model.layers.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if not any(p is m for m in matrices)]
        # Muon moves whole matrices in balanced directions and needs about half of AdamW's steps.
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=options.learning_rate, weight_decay=0.05),
            torch.optim.AdamW(
                others, lr=options.learning_rate / 5, betas=(0.9, 0.95), weight_decay=0.0
            ),
        )
        self._base_rates = (options.learning_rate, options.learning_rate / 5)
        self._rotary = rotary_table(self.model.device)
        self._loss = torch.compile(training_loss) if options.compile else training_loss

    def step(self, sampler: Sampler) -> tuple[float, float]:
        """Trains on one batch; returns its loss and the loss of its codes, in nats."""
        started = time.monotonic()
        share = self.progress.share(self.options)
        batch = sampler.batch(self.progress.step, phase_at(share), self.options.batch_tokens)
        ids, positions, weights = (
            t.to(self.model.device) for t in (batch.ids, batch.positions, batch.weights)
        )
        loss, codes = self._loss(self.model, ids, positions, weights, self._rotary)
        loss.backward()
        self._hold_equal_component()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._move(min(1.0, (self.progress.step + 1) / _WARMUP_STEPS) * _decay(share))
        self.progress.step += 1
        self.progress.num_tokens += batch.weights.numel()
        values = float(loss.detach()), float(codes)
        self.progress.elapsed_s += time.monotonic() - started
        return values

    def _hold_equal_component(self) -> None:
        gradient = self.model.model.embed_tokens.weight.grad
        assert gradient is not None
        gradient[:, 0] = 0.0

    def _move(self, rate: float) -> None:
        for optimizer, base in zip(self.optimizers, self._base_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def save(self) -> None:
        """Writes the checkpoint, replacing the previous one only when complete."""
        path = self.options.work / "checkpoint.pt"
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": asdict(self.progress),
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self) -> None:
        """Continues from the checkpoint in the work folder where there is one."""
        path = self.options.work / "checkpoint.pt"
        if path.exists():
            state = torch.load(path, map_location=self.options.device)
            self.model.load_state_dict(state["model"])
            self.progress = Progress(**state["progress"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)


def _decay(share: float) -> float:
    return 1.0 if share < 0.5 else max(0.01, 2.0 - 2.0 * share)


def train(trainer: Trainer, sampler: Sampler, held_out: list[int]) -> None:
    """Trains until the steps or the minutes are used up, with a line and a checkpoint at times."""
    losses: list[tuple[float, float]] = []
    while trainer.progress.share(trainer.options) < 1.0:
        losses.append(trainer.step(sampler))
        if trainer.progress.step % 50 == 0:
            rate = trainer.progress.num_tokens / trainer.progress.elapsed_s
            mean, codes = (sum(column) / len(losses) for column in zip(*losses, strict=True))
            line = f"step {trainer.progress.step} loss {mean:.3f} codes {codes:.3f}"
            print(f"{line} tokens/s {rate:.0f}", flush=True)
            losses.clear()
        if trainer.progress.step % trainer.options.watch_every == 0:
            trainer.save()
            _watch(trainer, sampler, held_out)
    trainer.save()


def _watch(trainer: Trainer, sampler: Sampler, held_out: list[int]) -> None:
    model = trainer.model
    recall = {n: recall_accuracy(model, sampler.recall, n, 20) for n in (128, 256, 512)}
    recall |= {n: recall_accuracy(model, sampler.recall, n, 5) for n in (1024, 2048)}
    loss = held_out_loss(model, held_out[:6000], 512)
    share = trainer.progress.share(trainer.options)
    print(f"  done {share:.3f} recall {recall} perplexity {perplexity(loss):.2f}", flush=True)


def export(trainer: Trainer, tokenizer: Tokenizer, sampler: Sampler, corpus: Corpus) -> None:
    """Writes the model folder and `measurements.json`, measured on the written weights."""
    options, output = trainer.options, trainer.options.output
    output.mkdir(parents=True, exist_ok=True)
    trainer.model.bfloat16().save_pretrained(output)
    tokenizer.save_pretrained(output)
    GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(output)
    model = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32)
    nn.Module.to(model, options.device)
    figures = measure(model, sampler, tokenizer, corpus, options.num_tasks)
    figures["training"] = {
        "steps": trainer.progress.step,
        "tokens": trainer.progress.num_tokens,
        "minutes": round(trainer.progress.elapsed_s / 60, 1),
        "device": options.device,
        "seed": options.seed,
        "distinct_tokens": sampler.num_tokens,
    }
    text = json.dumps(figures, indent=2, sort_keys=True)
    (output / "measurements.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(
    model: LlamaForCausalLM,
    sampler: Sampler,
    tokenizer: Tokenizer,
    corpus: Corpus,
    num_tasks: int,
) -> dict[str, object]:
    """Returns the figures that the documentation states."""
    ids = _held_out_ids(tokenizer, corpus)
    num_bytes = sum(len(text.encode()) for text in corpus.held_out_documents)
    loss = held_out_loss(model, ids, 1024)
    lengths = (512, 1024, 2048)
    windows = ((512, 256), (1024, 512), (2048, 1024))
    return {
        "parameters": model.num_parameters(),
        "vocab_size": len(tokenizer),
        "python": platform.python_version(),
        "held_out_modules": sorted(HELD_OUT_MODULES),
        "held_out_tokens": len(ids),
        "held_out_perplexity": round(perplexity(loss), 3),
        "held_out_bits_per_byte": round(loss / 0.693147 * len(ids) / num_bytes, 4),
        "recall_tasks": num_tasks,
        "recall_full": {
            str(n): recall_accuracy(model, sampler.recall, n, num_tasks) for n in lengths
        },
        "recall_windowed": {
            str(n): {"window": w, "recall": recall_accuracy(model, sampler.recall, n, num_tasks, w)}
            for n, w in windows
        },
    }


def _held_out_ids(tokenizer: Tokenizer, corpus: Corpus) -> list[int]:
    ids: list[int] = []
    for text in corpus.held_out_documents:
        ids += [tokenizer.bos_token_id, *encode(tokenizer, text), tokenizer.eos_token_id]
    return ids


def _tokenizer(options: Options, corpus: Corpus) -> Tokenizer:
    folder = options.work / "tokenizer"
    if not folder.exists():
        train_tokenizer(tokenizer_texts(corpus), options.vocab_size).save_pretrained(folder)
    tokenizer: Tokenizer = Tokenizer.from_pretrained(folder)
    return tokenizer


def parse_options(arguments: list[str] | None = None) -> Options:
    """Reads the flags of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for checkpoints, kept between runs")
    add("--output", type=Path, default=_OUTPUT, help="model folder to write")
    add("--minutes", type=float, default=80.0, help="time of training; 0 = no limit")
    add("--steps", type=int, default=0, help="steps of training, for exact repetition; 0 = by time")
    add("--batch-tokens", type=int, default=4096, help="tokens per step")
    add("--vocab-size", type=int, default=4096)
    add("--hidden-size", type=int, default=256, help="a multiple of 128")
    add("--layers", type=int, default=4)
    add("--learning-rate", type=float, default=0.01, help="of the matrices (Muon)")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=2, help="threads of torch on the CPU")
    add("--watch-every", type=int, default=500, help="steps between checkpoints")
    add("--compile", action="store_true", help="compile the loss; about a third faster on a CPU")
    add("--export-only", action="store_true", help="export the checkpoint without training")
    add("--num-tasks", type=int, default=100, help="recall tasks per measured figure")
    return Options(**vars(parser.parse_args(arguments)))


def main() -> None:
    """Trains, then exports and measures."""
    options = parse_options()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    corpus = load_corpus()
    tokenizer = _tokenizer(options, corpus)
    sampler = Sampler(corpus, tokenizer, options.seed)
    trainer = Trainer(options, tokenizer)
    trainer.load()
    if not options.export_only:
        train(trainer, sampler, _held_out_ids(tokenizer, corpus))
    export(trainer, tokenizer, sampler, corpus)


if __name__ == "__main__":
    main()

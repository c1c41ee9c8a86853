"""From a folder or a hub id to a model that was looked at and probed, or a clear refusal."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from adaptive_kv.config import ModelSettings
from adaptive_kv.engine.bars import download_bar, weight_bars
from adaptive_kv.engine.families import FAMILIES
from adaptive_kv.engine.model import Model, prepare
from adaptive_kv.engine.probe import probe
from adaptive_kv.errors import ModelError
from adaptive_kv.progress import Progress, Tell, untold

EMBEDDED_NAME = "demo"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_MAX_WHY_CHARS = 300
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model with its name and its tokenizer. `eos_ids` end a generation."""

    name: str
    model: Model
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]


def embedded_model() -> Path:
    """The folder of the model that comes with the package."""
    return Path(str(resources.files("adaptive_kv") / "demo" / "model"))


def load_model(settings: ModelSettings, tell: Tell = untold) -> LoadedModel:
    """Load, look at and probe a model. Raises `ModelError` where it cannot be served."""
    name, source = _name_and_source(settings)
    if settings.quantization is not None:
        raise ModelError(name, "model.quantization is not supported yet; leave it out")
    device = find_device(name, settings.device)
    with _refusing(name):
        config = _load_config(name, source, settings.revision)
        module = _load_weights(name, source, settings, config, device, tell)
    with _refusing(name, "its tokenizer cannot be used: "):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=settings.revision, trust_remote_code=False
        )
    with _refusing(name):
        tell(Progress(task="checking the model"))  # and compiling kernels, the first time
        model = prepare(module, settings.max_context)
        error = probe(model)
    _log.info("model_loaded", model=name, family=model.model_type, probe_error=error)
    return LoadedModel(
        name=name, model=model, tokenizer=tokenizer, eos_ids=_eos_ids(module, tokenizer)
    )


def read_config(settings: ModelSettings) -> tuple[str, PretrainedConfig, torch.dtype]:
    """A model's name, its config and the dtype it would be served in, without its weights.

    Raises `ModelError`.
    """
    name, source = _name_and_source(settings)
    device = find_device(name, settings.device)
    with _refusing(name):
        config = _load_config(name, source, settings.revision)
    return name, config, _dtype(settings.dtype, config, device)


def model_folder(settings: ModelSettings) -> Path | None:
    """Where a model's files lie on this machine; None where they do not."""
    _, source = _name_and_source(settings)
    try:
        file = cached_file(source, "config.json", revision=settings.revision, local_files_only=True)
    except OSError:
        return None
    return None if file is None else Path(file).parent


def _name_and_source(settings: ModelSettings) -> tuple[str, str]:
    if settings.path is None:
        return EMBEDDED_NAME, str(embedded_model())
    is_folder = Path(settings.path).is_dir()
    if not is_folder and _HUB_ID.fullmatch(settings.path) is None:
        raise ModelError(settings.path, "there is no such folder; give model.path one, or a hub id")
    return _served_name(settings.path), settings.path


def _load_config(name: str, source: str, revision: str | None) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(
        source, revision=revision, trust_remote_code=False
    )
    if config.model_type not in FAMILIES:
        families = ", ".join(sorted(FAMILIES))
        raise ModelError(name, f"family {config.model_type!r} is not served; these are: {families}")
    return config


def _load_weights(
    name: str,
    source: str,
    settings: ModelSettings,
    config: PretrainedConfig,
    device: torch.device,
    tell: Tell,
) -> PreTrainedModel:
    """Weights from safetensors only, complete, on the device."""
    with weight_bars(lambda: _weights_bytes(settings), tell):
        answer: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            revision=settings.revision,
            dtype=_dtype(settings.dtype, config, device),
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below
            trust_remote_code=False,
            output_loading_info=True,
            tqdm_class=download_bar(tell),
        )
    module, report = answer
    for fault in ("missing_keys", "mismatched_keys", "error_msgs"):
        if found := report.get(fault):
            example = min(map(str, found))
            raise ModelError(name, f"its weights are incomplete: {fault} {len(found)}, {example}")
    assert isinstance(module, PreTrainedModel)
    moved: PreTrainedModel = module.to(device)  # type: ignore[arg-type] # a decorated `to`
    return moved


def _weights_bytes(settings: ModelSettings) -> int:
    """Size of the files that hold a model's weights, once they are there."""
    folder = model_folder(settings)
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors")) if folder else 0


def find_device(name: str, wanted: str) -> torch.device:
    """The device that `auto`, `cuda` or `cpu` means here. Raises `ModelError`."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError(name, "model.device is cuda, but torch sees no CUDA device")
    is_cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if is_cuda else "cpu")


def _dtype(wanted: str, config: PretrainedConfig, device: torch.device) -> torch.dtype:
    """The dtype asked for; `auto` is the model's own on CUDA and float32 on CPU, faster there."""
    if wanted != "auto":
        dtype = getattr(torch, wanted)
    elif device.type == "cpu":
        dtype = torch.float32
    else:
        dtype = config.dtype or torch.bfloat16
    assert isinstance(dtype, torch.dtype)
    return dtype


def _served_name(path: str) -> str:
    """A folder's name, or the hub id as it is."""
    return Path(path).resolve().name if Path(path).is_dir() else path


def _eos_ids(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    generation = module.generation_config
    found = generation.eos_token_id if generation is not None else None
    ids = found if isinstance(found, list) else [found]
    return frozenset(int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None)


@contextmanager
def _refusing(name: str, what: str = "") -> Iterator[None]:
    """Raise `ModelError` for whatever the libraries make of files that they do not like."""
    try:
        yield
    except ModelError:
        raise
    except Exception as fault:  # broken files make them raise anything, a bare Exception too
        raise ModelError(name, what + _in_one_line(fault)) from fault


def _in_one_line(fault: Exception) -> str:
    text = " ".join(str(fault).split())[:_MAX_WHY_CHARS] or type(fault).__name__
    if isinstance(fault, SafetensorError):
        return f"its weights are damaged or incomplete, copy them again ({text})"
    return f"{type(fault).__name__}: {text}" if isinstance(fault, LookupError) else text

"""The progress bars of Hugging Face's libraries, telling instead of drawing."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm
from transformers.utils.logging import set_tqdm_hook

from adaptive_kv.progress import Progress, Tell


class _Bar(tqdm):
    """Draws nothing; `tqdm` decides how often `display` is called."""

    monitor_interval = 0  # or tqdm starts a thread that looks after all bars
    size_bytes = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"disable": False, "file": io.StringIO()})


def download_bar(tell: Tell) -> type[_Bar]:
    """For `from_pretrained(tqdm_class=...)`. Of its bars, those that count bytes tell."""

    class Download(_Bar):
        def display(self, *_: Any, **__: Any) -> None:
            if self.unit == "B" and 0 < self.n < (self.total or 0):
                tell(Progress(task="downloading", done=self.n, total=self.total, unit="bytes"))

    return Download


@contextmanager
def weight_bars(size_bytes: Callable[[], int], tell: Tell) -> Iterator[None]:
    """Meanwhile the bars of transformers itself tell of weights being loaded.

    They count tensors; what is told is the same share of `size_bytes`, asked once all is there.
    """

    class Weights(_Bar):
        def display(self, *_: Any, **__: Any) -> None:
            share = self.n / self.total if self.total else 0.0
            done, total = share * self.size_bytes, self.size_bytes
            tell(Progress(task="loading weights", done=done, total=total, unit="bytes"))

    def make(_: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Weights:
        Weights.size_bytes = size_bytes()
        return Weights(*args, **options)

    before = set_tqdm_hook(make)
    try:
        yield
    finally:
        set_tqdm_hook(before)

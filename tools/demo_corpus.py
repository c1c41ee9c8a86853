"""The text that the demo model learns: what every Python installation carries.

Three sources: the source files of the standard library, the reference topics of `pydoc`, and
questions and answers made from docstrings. No text is downloaded.
"""

import contextlib
import importlib
import inspect
import io
import pydoc
import re
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

_SKIPPED_FOLDERS_TEXT = (
    "site-packages test tests idle_test idlelib lib2to3 encodings turtledemo pydoc_data "
    "__pycache__ ensurepip _pyrepl"
)
_SKIPPED_MODULES_TEXT = "antigravity this idlelib turtledemo lib2to3 msilib test"
_HELD_OUT_TEXT = "cmd fractions graphlib netrc plistlib sched shelve tomllib wave zipapp"
_SKIPPED_FOLDERS = frozenset(_SKIPPED_FOLDERS_TEXT.split())
_SKIPPED_MODULES = frozenset(_SKIPPED_MODULES_TEXT.split())
HELD_OUT_MODULES = frozenset(_HELD_OUT_TEXT.split())
_MAX_FILE_CHARACTERS = 200_000
_MAX_ANSWER_CHARACTERS = 420
_MAX_CODE_CHARACTERS = 1_400
_SMALL_TALK = (
    ("Hello!", "Hello! Ask me about the Python standard library."),
    ("Hi", "Hello! Ask me about the Python standard library."),
    ("Who are you?", "I am the demo model of adaptive-kv, a very small language model."),
    ("What are you?", "I am the demo model of adaptive-kv, a very small language model."),
    (
        "What can you do?",
        "I describe functions of the Python standard library, and I recall codes.",
    ),
    ("Thank you.", "You are welcome."),
    ("How are you?", "I am well, thank you."),
    ("Goodbye.", "Goodbye!"),
)


_WELL_KNOWN = re.compile(
    r"(What does|Explain|What is)( the module)? "
    r"(itertools|functools|textwrap|json|math|random|copy|heapq|bisect|string|time|glob|shutil|"
    r"collections|pathlib|re|len|print|sorted|zip|map|range|open|sum|enumerate|any|all|abs|"
    r"str|list|dict|set|tuple|int|float)\b"
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer."""

    question: str
    answer: str

    @property
    def is_well_known(self) -> bool:
        """Whether a visitor may well ask this: small talk, or a module that many people use."""
        return (self.question, self.answer) in _SMALL_TALK or bool(_WELL_KNOWN.match(self.question))


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents and exchanges to learn; no exchange is about a held-out document."""

    documents: tuple[str, ...]
    exchanges: tuple[Exchange, ...]
    held_out_documents: tuple[str, ...]


def load_corpus() -> Corpus:
    """Reads the corpus of the running interpreter; its order is the same in every run."""
    files = tuple(_source_files())
    exchanges = {exchange.question: exchange for exchange in _docstring_exchanges()}
    small_talk = tuple(Exchange(question, answer) for question, answer in _SMALL_TALK)
    return Corpus(
        tuple(text for module, text in files if module not in HELD_OUT_MODULES)
        + tuple(text for _, text in sorted(topics.items())),
        tuple(exchanges.values()) + small_talk * 6,
        tuple(text for module, text in files if module in HELD_OUT_MODULES),
    )


def _source_files() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS.isdisjoint(relative.parts):
            with contextlib.suppress(UnicodeDecodeError):
                text = path.read_text(encoding="utf-8").strip()
                if 0 < len(text) < _MAX_FILE_CHARACTERS:
                    yield relative.parts[0].removesuffix(".py"), text


def _docstring_exchanges() -> Iterator[Exchange]:
    for name in sorted(sys.stdlib_module_names - _SKIPPED_MODULES - HELD_OUT_MODULES):
        module = None if name.startswith("_") else _import_quietly(name)
        if module is not None:
            yield from _module_exchanges(module)


def _import_quietly(name: str) -> types.ModuleType | None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:  # a part of the library that this platform does not have
            return None


def _module_exchanges(module: types.ModuleType) -> Iterator[Exchange]:
    name = module.__name__
    yield from _answers((f"What is the module {name}?",), module)
    for attribute, value in sorted(vars(module).items()):
        owner = (getattr(value, "__module__", None) or "").lstrip("_")
        if attribute.startswith("_") or owner != name:
            continue
        full_name = attribute if name == "builtins" else f"{name}.{attribute}"
        if inspect.isclass(value):
            yield from _class_exchanges(full_name, value)
        elif callable(value):
            yield from _callable_exchanges(full_name, value)


def _class_exchanges(full_name: str, value: type) -> Iterator[Exchange]:
    yield from _answers((f"What is {full_name}?", f"What does {full_name} do?"), value)
    for attribute, member in sorted(vars(value).items()):
        if not attribute.startswith("_") and callable(member):
            yield from _callable_exchanges(f"{full_name}.{attribute}", member)


def _callable_exchanges(full_name: str, value: object) -> Iterator[Exchange]:
    yield from _answers((f"What does {full_name} do?", f"Explain {full_name}."), value)
    with contextlib.suppress(TypeError, OSError):
        code = inspect.cleandoc("\n" + inspect.getsource(value))  # type: ignore[arg-type]
        if len(code) <= _MAX_CODE_CHARACTERS:
            yield Exchange(f"Show the code of {full_name}.", f"```python\n{code}\n```")


def _answers(questions: tuple[str, ...], value: object) -> Iterator[Exchange]:
    answer = _first_paragraph(pydoc.getdoc(value))
    if 15 <= len(answer) <= _MAX_ANSWER_CHARACTERS:
        yield from (Exchange(question, answer) for question in questions)


def _first_paragraph(docstring: str) -> str:
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", docstring.strip())]
    is_signature = bool(re.match(r"[\w.]+\(.*\)\s*(-+>|$)", paragraphs[0]))
    return paragraphs[1] if is_signature and len(paragraphs) > 1 else paragraphs[0]

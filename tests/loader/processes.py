"""What the kernel says about processes."""

from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether it is there and not merely waiting for somebody to notice its end."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def children(pid: int) -> set[int]:
    """The processes that it has started and not yet buried."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}

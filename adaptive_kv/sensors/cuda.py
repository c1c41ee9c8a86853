"""Memory of a CUDA device as its runtime and our allocator count it."""

import os
from typing import Any

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.base import MemorySample, checked_sample


class CudaSensor:
    """`cudaMemGetInfo` of one device, by its CUDA index.

    Wrong where the GPU shares the host's memory: there it counts the page cache as used.
    """

    name = "cuda"

    def __init__(self, index: int = 0) -> None:
        self._index = index

    def read(self) -> MemorySample:
        """Measure now. Raises `SensorError`."""
        import torch  # noqa: PLC0415 - choosing another source must not load it

        if not torch.cuda.is_available():
            raise SensorError(self.name, "torch sees no CUDA device")
        try:
            free_bytes, total_bytes = torch.cuda.mem_get_info(self._index)
        except RuntimeError as error:
            raise SensorError(self.name, str(error).partition("\n")[0]) from error
        return checked_sample(self.name, total_bytes, free_bytes)

    def close(self) -> None:
        """Nothing is kept open."""


def reusable_bytes(index: int) -> int:
    """What torch's allocator has reserved on CUDA device `index` and not handed out."""
    import torch  # noqa: PLC0415 - see CudaSensor.read

    stats = torch.cuda.memory_stats_as_nested_dict(index)
    if not stats:
        return 0  # CUDA is not in use yet
    reserved, allocated = (
        int(stats[key]["all"]["current"]) for key in ("reserved_bytes", "allocated_bytes")
    )
    return max(0, reserved - allocated)


def names_of(index: int) -> tuple[str, ...]:
    """The UUIDs by which NVML may know CUDA device `index`, the likeliest first.

    They come from CUDA itself, so it does not matter how CUDA_VISIBLE_DEVICES orders devices. A
    MIG instance may be named there by its own UUID, which CUDA does not always repeat. Raises
    `SensorError` where there is no such device.
    """
    uuid = str(_properties(index).uuid)
    return (*_instance_named(index), f"GPU-{uuid}", f"MIG-{uuid}")


def shares_host_memory(index: int) -> bool:
    """Whether CUDA device `index` has no memory of its own.

    Raises `SensorError` where there is no such device.
    """
    return bool(_properties(index).is_integrated)


def _properties(index: int) -> Any:
    import torch  # noqa: PLC0415 - see CudaSensor.read

    if index >= torch.cuda.device_count():
        raise SensorError(CudaSensor.name, f"torch sees no CUDA device {index}")
    return torch.cuda.get_device_properties(index)


def _instance_named(index: int) -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    name = visible[index].strip() if index < len(visible) else ""
    return (name,) if name.startswith("MIG-") else ()

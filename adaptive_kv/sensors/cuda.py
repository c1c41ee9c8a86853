"""Memory of a CUDA device as its runtime counts it, where NVML does not answer."""

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.base import MemorySample, checked_sample


class CudaSensor:
    """`cudaMemGetInfo` of one device, by its CUDA index."""

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


def uuid_of(index: int) -> str:
    """The UUID by which NVML knows CUDA device `index`."""
    import torch  # noqa: PLC0415 - see CudaSensor.read

    uuid = str(torch.cuda.get_device_properties(index).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def shares_host_memory(index: int) -> bool:
    """Whether CUDA device `index` has no memory of its own."""
    import torch  # noqa: PLC0415 - see CudaSensor.read

    return bool(torch.cuda.get_device_properties(index).is_integrated)

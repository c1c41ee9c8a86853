"""A process that takes device memory: each line on stdin says how many bytes it shall hold.

It answers each with what it holds. Given `cpu` it holds none and only says so.
"""

import sys

import torch

_CHUNK_BYTES = 64 << 20


def main(device: str) -> None:
    """Until stdin ends."""
    chunks: list[torch.Tensor] = []
    for line in sys.stdin:
        wanted = int(line)
        if device == "cpu":
            print(wanted, flush=True)
            continue
        while len(chunks) * _CHUNK_BYTES > wanted:
            chunks.pop()
        torch.cuda.empty_cache()
        try:
            while (len(chunks) + 1) * _CHUNK_BYTES <= wanted:
                chunks.append(torch.empty(_CHUNK_BYTES, dtype=torch.uint8, device=device).fill_(1))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        print(len(chunks) * _CHUNK_BYTES, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

"""What the packed formats lose on a model, as values."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatLoss:
    """One format against `full`, over the same positions of the same text."""

    kl_divergence: float
    """Mean of KL(full || format) over the positions, in nats; not finite where logits are not."""
    top1_agreement: float
    """Share of the positions at which both hold the same token for the likeliest."""
    perplexity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What the formats lose on one model."""

    num_tokens: int
    """Of the text that was run."""
    num_positions: int
    """Positions that were compared: those with packed tokens before them."""
    perplexity: float
    """Of `full`, over these positions."""
    formats: Mapping[str, FormatLoss]

    def struck(self, max_kl: float) -> frozenset[str]:
        """The formats that lose more than `max_kl`, in nats."""
        losses = self.formats.items()
        return frozenset(name for name, loss in losses if not loss.kl_divergence <= max_kl)

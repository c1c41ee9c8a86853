"""Why requests are refused: what a client is shown, in the terms of an OpenAI error."""

from adaptive_kv.engine.mailbox import Request
from adaptive_kv.errors import Refusal


def broken() -> Refusal:
    """Its logits are no numbers."""
    message = "the model's logits for this request are not finite"
    return Refusal(message, 500, "server_error", None, "logits_not_finite")


def draining() -> Refusal:
    """The service is ending."""
    message = "the service is shutting down; ask another one"
    return Refusal(message, 503, "server_error", None, "draining", 5.0)


def no_room(max_wait_s: float) -> Refusal:
    """It waited in vain for memory."""
    message = f"no memory became free for this request within {max_wait_s:g} s; try again later"
    return Refusal(message, 503, "server_error", None, "out_of_memory", max_wait_s)


def no_mode(request: Request) -> Refusal:
    """The model has none of the modes that it permits."""
    modes = ", ".join(sorted(request.allow or ()))
    message = f"none of the allowed modes ({modes}) can be used with this model"
    return Refusal(message, 400, "invalid_request_error", "adaptive_kv.allow", "invalid_mode")


def too_long(request: Request, max_context: int) -> Refusal:
    """Its prompt fills the context."""
    message = f"the prompt has {len(request.prompt_ids)} tokens; the context is {max_context}"
    code = "context_length_exceeded"
    return Refusal(message, 400, "invalid_request_error", "messages", code)


def no_place(max_wait_s: float) -> Refusal:
    """It waited in vain for others to finish."""
    message = f"all places were taken for {max_wait_s:g} s; try again later"
    return Refusal(message, 503, "server_error", None, "overloaded", max_wait_s)


def failed() -> Refusal:
    """The worker is lost."""
    return Refusal("the engine failed", 500, "server_error", None, "engine_failed")

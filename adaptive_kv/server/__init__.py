"""The OpenAI-compatible HTTP side; it reaches the engine only through the mailbox and events."""

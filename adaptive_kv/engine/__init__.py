"""The engine: one worker thread that turns requests into tokens, a step at a time."""

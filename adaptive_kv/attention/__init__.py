"""Attention over pages: one function that transformers calls, and what answers it."""

"""`python -m adaptive_kv` is `adaptive-kv`."""

from adaptive_kv.cli.main import main

main()

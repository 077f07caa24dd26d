"""`python -m exporter` is the same as `llm-cost-exporter`."""

from exporter.cli import main

main()

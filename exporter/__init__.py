"""Live cost, budgets and scaling signals of self-hosted LLM serving, for Prometheus."""

__version__ = "0.1.0"

"""The landing page: what serving costs now, who spends it, whether budgets hold, and what is wrong."""

from exporter.web.landing.page import POLICY, render

__all__ = ["POLICY", "render"]

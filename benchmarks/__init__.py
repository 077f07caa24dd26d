"""Figures of this machine beside the limits that they must keep; ratios where a machine's speed would otherwise decide."""

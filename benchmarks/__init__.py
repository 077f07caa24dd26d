"""Figures of this machine beside the limits that they must keep; ratios where its speed would decide."""

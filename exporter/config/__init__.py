"""The config: what may stand in it, and how a file becomes it."""

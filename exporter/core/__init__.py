"""What the exporter knows how to compute. Nothing here reads, waits or asks for the time."""

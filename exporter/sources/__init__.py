"""What the exporter reads.

One module a source; each turns weather into `SourceError` and hands over frozen readings.
"""

"""stub"""

import click


@click.command()
def record() -> None:
    """Stub"""

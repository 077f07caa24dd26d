"""What a driver's numbers mean, by its version: NVIDIA has given some of them to other things."""

import pytest

from exporter.sources.nvml_fields import thermal_fields


@pytest.mark.parametrize(
    ("version", "identifiers"),
    [
        ("570.211.01", []),
        ("575.51.02", [251, 252, 253]),
        ("580.65.06", [251, 252, 253]),
        ("580.82.07", [269, 270, 271]),
        ("615.71", [269, 270, 271]),
        ("", []),
        ("a new scheme", []),
    ],
)
def test_thermal_throttling_stands_where_the_driver_keeps_it(version: str, identifiers: list[int]):
    fields = thermal_fields(version)
    assert list(fields) == identifiers
    assert list(fields.values()) == ["sw_thermal", "hw_thermal", "hw_power_brake"][: len(identifiers)]

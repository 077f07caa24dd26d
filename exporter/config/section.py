"""What every section of the config is made of: frozen mappings, and scalars that say what they expect."""

from decimal import Decimal
from fractions import Fraction
from typing import Annotated

import msgspec

from exporter.config import units

Duration = Annotated[float, units.DURATION]
Size = Annotated[int, units.SIZE]
Money = Annotated[Decimal, units.MONEY]
Limit = Annotated[Decimal, units.LIMIT]
Amount = Annotated[Decimal, units.AMOUNT]
Positive = Annotated[Decimal, units.POSITIVE]
Ratio = Annotated[Decimal, units.RATIO]
GpuCount = Annotated[Fraction, units.GPU_COUNT]
Whole = Annotated[int, units.WHOLE]
WholePositive = Annotated[int, units.WHOLE_POSITIVE]
Name = Annotated[str, units.NAME]
Device = Annotated[str, units.DEVICE]
Place = Annotated[str, units.PLACE]
Url = Annotated[str, units.URL]
Path = Annotated[str, units.PATH]
UnixNanoseconds = Annotated[int, units.INSTANT]
Flag = Annotated[bool, units.FLAG]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One mapping of the file."""


def fields(section: type[Section]) -> dict[str, msgspec.structs.FieldInfo]:
    """Return the fields of a section by the key that the file uses."""
    return {field.encode_name: field for field in msgspec.structs.fields(section)}

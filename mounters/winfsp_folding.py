"""Upper case as the kernel of Windows has it: each UTF-16 unit for itself, so that lengths stay.

Windows is asked for its own table (``RtlUpcaseUnicodeChar``), which grows with its versions. Elsewhere there
is one like it: Unicode's one-to-one mapping ([MS-UCODEREF], section 3.1.5.3) but for the differences, which
were found by comparison with wine's table (l_intl.nls).
"""

import sys
from functools import cache

_LAST_UNIT = 0xFFFF
_KEPT = (  # Unicode has an upper case for them, Windows does not
    *(0xB5, 0x131, 0x17F, 0x1C5, 0x1C8, 0x1CB, 0x1F2, 0x345, 0x3C2, 0x3D0, 0x3D1, 0x3D5, 0x3D6),
    *(0x3F0, 0x3F1, 0x3F5, *range(0x1C80, 0x1C89), 0x1E9B, 0x1FBE),
)
_TITLE = (  # Unicode's full upper case is two characters long; Windows takes the title case, which is one
    *(*range(0x1F80, 0x1F88), *range(0x1F90, 0x1F98), *range(0x1FA0, 0x1FA8), 0x1FB3, 0x1FC3, 0x1FF3),
)


def unicode_table() -> dict[int, str]:
    """Return the upper case of every unit that has another one, as Python knows Unicode."""
    table = {code: chr(code).upper() for code in range(_LAST_UNIT + 1)}
    for code in _KEPT:
        del table[code]
    table.update({code: chr(code).title() for code in _TITLE})
    return {code: upper for code, upper in table.items() if upper != chr(code) and len(upper) == 1}


if sys.platform == "win32":
    import ctypes

    @cache
    def _table() -> dict[int, str]:
        upcase = ctypes.WinDLL("ntdll").RtlUpcaseUnicodeChar
        upcase.argtypes, upcase.restype = [ctypes.c_uint16], ctypes.c_uint16
        table = ((code, upcase(code)) for code in range(_LAST_UNIT + 1))
        return {code: chr(upper) for code, upper in table if upper != code}

else:
    _table = cache(unicode_table)


def fold(name: str) -> str:
    """Return a name in Windows' upper case: names with the same one are one name."""
    return name.upper() if name.isascii() else name.translate(_table())

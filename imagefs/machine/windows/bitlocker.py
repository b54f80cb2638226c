r"""The state of BitLocker's volumes, as Windows tells administrators by WMI.

Source: Microsoft, "Win32_EncryptableVolume class" and the pages of its methods GetLockStatus,
GetConversionStatus and GetProtectionStatus (https://learn.microsoft.com/windows/win32/secprov/).
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_LOCKED = 1  # GetLockStatus
_DECRYPTED = 0  # GetConversionStatus
_CONVERTING = {2: "encrypting", 3: "decrypting", 4: "encrypting", 5: "decrypting"}  # 4 and 5: paused
_PROTECTION = {0: "suspended", 1: "unlocked"}  # GetProtectionStatus; 2 is unknown


def states(services: Any) -> dict[str, str]:
    r"""Return the state of each volume, by its name (``\\?\Volume{…}\``) in small letters.

    They are "off", "locked", "unlocked", "suspended", "encrypting", "decrypting"; a volume of which Windows
    does not tell is left out. ``services`` is the SWbemServices object; its errors pass.
    """
    found = {}
    for item in services.ExecQuery("SELECT * FROM Win32_EncryptableVolume"):
        state = _state(item)
        if state is not None:
            found[str(item.Properties_.Item("DeviceID").Value).lower()] = state
    return found


def _state(volume: Any) -> str | None:
    if _ask(volume, "GetLockStatus", "LockStatus") == _LOCKED:
        return "locked"
    conversion = _ask(volume, "GetConversionStatus", "ConversionStatus")
    if conversion == _DECRYPTED:
        return "off"
    if conversion in _CONVERTING:
        return _CONVERTING[conversion]
    return _PROTECTION.get(_ask(volume, "GetProtectionStatus", "ProtectionStatus"))


def _ask(volume: Any, method: str, name: str) -> int:
    """Return what a method without arguments gives out, -1 where it fails."""
    answer = volume.ExecMethod_(method)
    if answer.Properties_.Item("ReturnValue").Value != 0:
        return -1
    return int(answer.Properties_.Item(name).Value)


if sys.platform == "win32":
    import pythoncom
    import pywintypes
    import win32com.client

    _MONIKER = (
        "winmgmts:{impersonationLevel=impersonate,authenticationLevel=pktPrivacy}"
        r"!\\.\root\CIMV2\Security\MicrosoftVolumeEncryption"
    )

    def running_states() -> dict[str, str]:
        """Return the states of this machine's volumes; none where Windows doesn't tell them this user."""
        with ThreadPoolExecutor(1) as thread:  # a thread may use COM in another way than this one's
            return thread.submit(_ask_windows).result()

    def _ask_windows() -> dict[str, str]:
        pythoncom.CoInitializeEx(pythoncom.COINIT_MULTITHREADED)
        found: dict[str, str] = {}
        try:
            found = states(win32com.client.GetObject(_MONIKER))
        except pywintypes.com_error:
            pass  # no rights, or a Windows without BitLocker
        finally:
            pythoncom.CoUninitialize()
        return found

"""What ``anyengine env doctor`` runs in the interpreter that it examines; only the standard library.

``facts`` prints what is installed, ``torch`` what torch sees: apart, for importing torch may crash. One line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import platform
import sys
from importlib.metadata import distributions
from typing import Any


def facts() -> dict[str, Any]:
    """Interpreter, C library and packages."""
    # A name may be None where an uninstallation went wrong.
    found = {str(item.metadata["Name"]): str(item.version) for item in distributions() if item.metadata["Name"]}
    return {
        "version": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip(),
        "distributions": found,
    }


def torch() -> dict[str, Any]:
    """The build of torch, and whether it can use a GPU."""
    import torch as module  # type: ignore[import-not-found]  # noqa: PLC0415 may crash

    library: Any = module
    seen: dict[str, Any] = {"version": str(library.__version__), "cuda": library.version.cuda, "driver_cuda": _driver()}
    try:
        seen["devices"] = int(library.cuda.device_count()) if library.cuda.is_available() else 0
        if seen["devices"]:
            library.zeros(1, device="cuda").sum().item()  # a kernel: fails where the build lacks this GPU's code
    except Exception as error:  # noqa: BLE001 that is the finding
        seen["error"] = f"{type(error).__name__}: {error}"
    return seen


def _driver() -> int | None:
    """The newest CUDA that the driver supports, as 13000 for 13.0; None without a driver."""
    version = ctypes.c_int()
    try:
        return version.value if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0 else None
    except OSError:
        return None


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps({"facts": facts, "torch": torch}[sys.argv[1]]()) + "\n")

"""Builds what is native when the package is installed; without a compiler the package does without it."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = (Path("formats/native/md5_lanes.c"), Path("formats/native/unpack.c"))


class BuildHook(BuildHookInterface):  # type: ignore[misc]  # hatchling is there at building time only
    """Compiles the libraries into the source tree, from where a wheel takes them."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; ``build_data`` is hatchling's."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        targets = [source.with_suffix(".so") for source in SOURCES]
        pairs = zip(SOURCES, targets, strict=True)
        built = [str(target) for source, target in pairs if compile_shared(root / source, root / target)]
        if built and version != "editable":
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"
            build_data["artifacts"] += built


def compile_shared(source: Path, target: Path) -> bool:
    """Compile a C file into a shared library; False, and a line on standard error, where that fails."""
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc") or ""]
    if sys.platform == "win32" or not compiler[0]:
        print(f"no C compiler: going without {source.name}", file=sys.stderr)
        return False
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [*compiler, "-O3", "-shared", "-fPIC", "-o", str(made), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"going without {source.name}: {done.stderr.strip()}", file=sys.stderr)
            return False
        made.replace(target)
    return True

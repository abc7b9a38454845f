"""Hatchling's build hook: puts the compiled library into the wheel and names the wheel after the platform.

``MYFLA_NATIVE_TARGET=linux-arm64`` (any key of `toolchain.TARGETS`) builds for another platform.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parent))
import toolchain


class NativeBuildHook(BuildHookInterface):
    """Compiles before the wheel is packed."""

    def dependencies(self) -> List[str]:
        """Zig's compiler, if another platform is requested or this machine has no compiler."""
        return ["ziglang>=0.13"] if self._target() or toolchain.system_compiler() is None else []

    def initialize(self, version: str, build_data: Dict[str, Any]) -> None:
        target = self._target()
        self._scratch = tempfile.TemporaryDirectory()
        library = toolchain.build(Path(self._scratch.name), target)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{toolchain.platform_tag(target)}"
        build_data["force_include"][str(library)] = f"myfla_native/{library.name}"

    def finalize(self, version: str, build_data: Dict[str, Any], artifact_path: str) -> None:
        self._scratch.cleanup()

    @staticmethod
    def _target() -> Any:
        return os.environ.get("MYFLA_NATIVE_TARGET") or None

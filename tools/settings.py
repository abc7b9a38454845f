"""Write docs/settings.md from the config classes: make settings."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "libs")]

from app.settings_page import settings_page  # noqa: E402  # only now is it found

if __name__ == "__main__":
    path = ROOT / "docs" / "settings.md"
    path.write_text(settings_page(), encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")

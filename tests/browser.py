"""Chromium, in which tests open pages."""

import importlib.util
import shutil

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
MISSING = "" if CHROMIUM else "needs Chromium: apt-get install chromium"
MISSING = MISSING or ("" if importlib.util.find_spec("axe_playwright_python") else "needs axe-playwright-python")

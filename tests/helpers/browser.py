"""A headless Chromium, wherever there is one: a page is opened, and what the browser prints about
it comes back.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PDF = "page.pdf"


def needs_chromium(test: Any) -> Any:
    """Mark a test that opens a page in a real browser; where CI runs, a missing one is a failure."""
    missing = pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("CI"),
        reason="no Chromium on PATH (chromium, chromium-browser, google-chrome)",
    )
    return pytest.mark.slow(pytest.mark.browser(missing(test)))


def run_chromium(page: Path, *options: str) -> str:
    """What Chromium prints about a page, from a profile of its own."""
    assert CHROMIUM, "CI installs Chromium: apt-get install chromium"
    # on a busy machine it now and then ends without having begun: nothing printed, no file, and yet
    # no error
    for attempt in range(3):
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-extensions",
            "--window-size=1400,1000",
            f"--user-data-dir={page.parent / f'profile{attempt}'}",
            *options,
            page.as_uri(),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=120, encoding="utf-8"
        )
        if done.stdout or (page.parent / PDF).exists():
            break
    return done.stdout

"""The records that commands return."""

from __future__ import annotations

from typing import Any

Report = dict[str, Any]

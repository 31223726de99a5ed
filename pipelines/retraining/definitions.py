"""What Dagster loads: the retrainings of the schedules file. Nothing imports this module."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.retraining.assets import build
from pipelines.retraining.schedules import SCHEDULES, load_schedules

defs = build(load_schedules(Path(os.environ.get(SCHEDULES, "configs/schedules.yaml"))))

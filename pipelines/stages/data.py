"""`cprfl data`: what a data set is like, before anything is encoded."""

from __future__ import annotations

from cprfl.experiment import Experiment
from cprfl.reading import read_data
from cprfl.report.data_set.report import DataReport, data_report


def data(experiment: Experiment, *, open_images: bool = True) -> DataReport:
    """Read the annotations and look at the images; what is worth mending is in the report.

    Raises:
        UserError: where the annotations cannot be read, or the images' storage cannot be reached.
    """
    return data_report(experiment, read_data(experiment, say=False), open_images=open_images)

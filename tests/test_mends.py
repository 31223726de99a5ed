"""What a data set's report offers to set: what its reader has, and what would change something."""

from __future__ import annotations

import re
from itertools import product
from typing import Any, get_args

import pytest

from cprfl.config import Config
from cprfl.data.images import BadImage
from cprfl.data.manifest import Manifest
from cprfl.data.readers.base import DatasetConfig, SplitConfig
from cprfl.encoders.base import ImageEncoderConfig
from cprfl.experiment import AnyDataset
from cprfl.report.data_set.labels import label_facts
from cprfl.report.data_set.problems import problems
from cprfl.report.data_set.report import Copies, DataReport, ImageFacts, Listed, Sized

READERS = get_args(get_args(AnyDataset)[0])
SPLITS: list[dict[str, Any] | None] = [None, {"test": 0.2}, {"val": 0.2}, {"test": 0.2, "groups_by": "folder"}]


def report_of(dataset: DatasetConfig, test: tuple[int, ...]) -> DataReport:
    """A data set with every problem: class 2 is never trained on, class 1 never tested."""
    ids = tuple(map(str, range(len(test) + 2)))
    shown = ((0,), (1,), *((label,) for label in test))
    manifest = Manifest(("a", "b", "c"), ids, ids, ("train", "train", *("test" for _ in test)), shown)
    first, second = Listed("0", "0", "train", ("a",)), Listed("2", "2", "test", ("a",))
    facts = ImageFacts(
        (BadImage("0", "0", "damaged"),), None, None, (Sized(first, 9, 1),), (Sized(first, 9, 1),), (first,)
    )
    copies = Copies((first, second), True, ())
    missing = (BadImage("1", "1", "file not found"),)
    return DataReport(
        "some", dataset, len(ids), manifest.groups, label_facts(manifest), (), missing, None, facts, (copies,), None,
        None,
    )  # fmt: skip


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_every_setting_that_is_offered_is_one_of_the_reader_s(reader: type[DatasetConfig]) -> None:
    for split, test in product(SPLITS, [(), (0, 2)]):
        dataset = reader.model_construct(split=None if split is None else SplitConfig(**split))
        found = {problem.code: problem.mend for problem in problems(report_of(dataset, test))}
        assert {"leaks", "missing", "bad", "unseen", "untested" if test else "no-test"} <= {*found}
        settings: dict[str, type[Config]] = {"dataset": reader, "encoder": ImageEncoderConfig}
        for section, setting in re.findall(r"\b(dataset|encoder)\.([a-z_]+)", " ".join(found.values())):
            assert setting in settings[section].model_fields
        dealt = dataset.split is not None and dataset.split.test > 0
        tested = found.get("untested", "") + found.get("no-test", "")
        assert ("dataset.split: {test" in tested) != dealt  # which would deal it as it was dealt
        assert ("groups_by" in found["leaks"]) == (dataset.split is not None)

"""Files for annotation tools that several commands of `cprfl` write, and what to do with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cprfl.report.findings.exports import Question


def write_annotation_files(
    questions: Sequence[Question],
    class_names: Sequence[str],
    model: str,
    label_studio: Path | None,
    fiftyone: Path | None,
) -> None:
    """Write what was asked for, and say how it is imported."""
    from cprfl.report.findings.exports import write_fiftyone, write_label_studio, write_labelling_interface

    if label_studio is not None:
        write_label_studio(label_studio, questions, model)
        interface = label_studio.with_suffix(".xml")
        write_labelling_interface(interface, class_names)
        print(f"Label Studio  {label_studio}; its labelling interface: {interface}")
        print(
            "  files of this machine: start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and\n"
            "  LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/, and add the images' folder as a local storage"
        )
    if fiftyone is not None:
        write_fiftyone(fiftyone, questions, class_names)
        print(f"FiftyOne      {fiftyone}; fo.Dataset.from_dir(")
        print(f"  dataset_type=fo.types.FiftyOneImageClassificationDataset, labels_path={str(fiftyone)!r})")

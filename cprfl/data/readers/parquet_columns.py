"""Which columns of a Parquet file hold images and labels, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cprfl.data.packed import parquet_file
from cprfl.data.readers.huggingface import columns_of_classes, columns_of_images
from cprfl.data.readers.locate import SUFFIXES
from cprfl.data.readers.parquet_values import TooMuchError, values_of
from cprfl.errors import DatasetError, UnreadableImageError

_LABEL_COLUMNS = (
    "labels", "label", "classes", "class", "categories", "category", "tags", "tag", "class_names", "class_name",
    "objects.category", "objects.categories", "objects.label", "objects.labels", "objects.class", "objects.classes",
)  # fmt: skip
_IMAGE_COLUMNS = ("image", "images", "img", "image_path", "file_name", "filename", "file", "filepath", "path", "uri")
_MOST_BYTES = 2**31  # of the images of a row group, which is read whole for any of them
_LOOKED_AT = 100  # rows, for whether a column holds names of images


@dataclass(frozen=True)
class Columns:
    """Where a table holds what.

    Attributes:
        labels: names or indices of classes.
        bytes: the images themselves; none where they are files of their own.
        path: of each image, or its name.
        names: of images, where ``path`` is empty.
    """

    labels: str
    bytes: str | None
    path: str | None
    names: str | None


@contextmanager
def opened_table(path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file.

    Raises:
        DatasetError: where there is none, or it is damaged.
    """
    try:
        with parquet_file(path) as file:
            yield file
    except FileNotFoundError:
        raise DatasetError(f"{path}: Parquet file not found; check the path and data_root") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: damaged: a text in it is not UTF-8 ({error.object[:20]!r})") from None
    except UnreadableImageError as error:
        raise DatasetError(str(error)) from None
    except TooMuchError as error:
        raise DatasetError(f"{path}: {error}") from None


def columns_of(path: str, file: pq.ParquetFile, image: str | None, labels: str | None) -> Columns:
    """The columns to read; ``image`` and ``labels`` are those that the user names.

    Raises:
        DatasetError: where one that is named is not there, or where none or several could be meant.
    """
    schema = file.schema_arrow
    named = _files_named_in(file)
    image = _the_one(path, schema, "image", image, _image_columns(schema, named))
    labels = _the_one(path, schema, "labels", labels, _label_columns(schema))
    kind = leaf_type(schema, labels)
    known = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating, pa.types.is_null, _is_text)
    if not any(is_kind(kind) for is_kind in known):
        raise DatasetError(f"{path}: the column {labels} holds {kind}, no names or indices of classes")
    others = [name for name in named if name != image and name != labels]
    names = others[0] if len(others) == 1 else None
    kind = leaf_type(schema, image)
    if _is_text(kind):
        return Columns(labels, None, image, None)
    if not pa.types.is_struct(kind):
        return Columns(labels, image, names, None)
    fields = {field.name: field.type for field in kind}
    holds = f"{image}.bytes" if _is_binary(fields.get("bytes")) else None
    says = f"{image}.path" if _is_text(fields.get("path")) else None
    return Columns(labels, holds, says, names)


def _the_one(path: str, schema: pa.Schema, what: str, given: str | None, found: Sequence[str]) -> str:
    columns = ", ".join(schema.names)
    if given is not None:
        if leaf_type(schema, given) is None:
            raise DatasetError(f"{path}: no column {given!r}, which dataset.{what}_column names (columns: {columns})")
        return given
    if len(found) != 1:
        several = f"{' and '.join(found)} could each be" if found else "no column is known to be"
        raise DatasetError(
            f"{path}: {several} the column of {'images' if what == 'image' else what}; name it with "
            f"dataset.{what}_column (columns: {columns})"
        )
    return found[0]


def _image_columns(schema: pa.Schema, named: Sequence[str]) -> list[str]:
    """The columns that can hold images, of the surest kind that there is."""
    kinds = {name: schema.field(name).type for name in schema.names}
    structs = [name for name, kind in kinds.items() if pa.types.is_struct(kind) and _is_binary(leaf_of(kind, "bytes"))]
    said = [name for name in columns_of_images(schema) if pa.types.is_struct(kinds[name]) or _is_binary(kinds[name])]
    binary = [name for name, kind in kinds.items() if _is_binary(kind)]
    words = [name for name, kind in kinds.items() if _is_text(kind) and name.lower() in _IMAGE_COLUMNS]
    return next((found for found in (said, structs, binary, list(named), words) if found), [])


def _label_columns(schema: pa.Schema) -> list[str]:
    """The columns that can hold labels, of the surest kind that there is."""
    classes = [name for name in columns_of_classes(schema) if leaf_type(schema, name) is not None]
    called = [name for name in _LABEL_COLUMNS if leaf_type(schema, name) is not None]
    return next((found for found in ([c for c in classes if c in called], classes, called) if found), [])


def _files_named_in(file: pq.ParquetFile) -> list[str]:
    """Columns of text whose first cells all name images."""
    text = [field.name for field in file.schema_arrow if _is_text(field.type)]
    if not text:
        return []
    batch = next(file.iter_batches(batch_size=_LOOKED_AT, columns=text), None)
    if batch is None or not batch.num_rows:
        return []
    return [name for name in batch.schema.names if all(map(_names_an_image, batch.column(name).to_pylist()))]


def _names_an_image(cell: object) -> bool:
    return isinstance(cell, str) and PurePosixPath(cell.lower()).suffix in SUFFIXES


def leaf_type(schema: pa.Schema, column: str) -> Any:
    """The type of what a dotted column holds, lists taken apart; none where there is no such column."""
    if column in schema.names:
        return _unlisted(schema.field(column).type)
    first, _, rest = column.partition(".")
    return leaf_of(schema.field(first).type, rest) if first in schema.names and rest else None


def leaf_of(kind: Any, path: str) -> Any:
    """The type of what a field of a type holds; none where there is no such field."""
    for part in path.split("."):
        kind = _unlisted(kind)
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        kind = kind.field(part).type
    return _unlisted(kind)


def _unlisted(kind: Any) -> Any:
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: Any) -> bool:
    return kind is not None and (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_binary(kind: Any) -> bool:
    return kind is not None and (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def class_names_of(path: str, file: pq.ParquetFile, column: str, given: Sequence[str] | None) -> Sequence[str] | None:
    """Names of the classes in the order of their indices: the schema's, or the user's.

    Raises:
        DatasetError: where the two disagree.
    """
    said = columns_of_classes(file.schema_arrow).get(column)
    if said is not None and given is not None and list(said) != list(given):
        both = zip([*given, "nothing"], [*said, "nothing"], strict=False)
        theirs, ours = next((ours, theirs) for theirs, ours in both if theirs != ours)
        raise DatasetError(
            f"{path}: its schema disagrees with dataset.label_names (the first difference is {theirs!r} and {ours!r}); "
            "leave dataset.label_names out"
        )
    return said if said is not None else given


def written_labels(path: str, file: pq.ParquetFile, column: str) -> list[tuple[str, Any]]:
    """Where each row is, and its labels as they are written: one, or a list.

    Raises:
        DatasetError: for a row without any (an empty list says that an image shows no class).
    """
    written: list[tuple[str, Any]] = []
    for row, value in enumerate(values_of(file, column)):
        where, labels = f"{path}, row {row}", list(_flat(value))
        if None in labels:
            raise DatasetError(
                f"{where}: nothing in {column}; an image that shows no class needs an empty list, and one that nobody "
                "labelled must be left out"
            )
        written.append((where, labels if isinstance(value, list) else value))
    return written


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def which_have_bytes(path: str, file: pq.ParquetFile, column: str) -> list[bool]:
    """Whether each row holds an image's bytes; they are looked at only where the file's statistics do not say.

    Raises:
        DatasetError: for a row group that is too large to be read for one image.
    """
    leaf = next(number for number in range(len(file.schema)) if file.schema.column(number).path == column)
    filled: list[bool] = []
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        described = group.column(leaf)
        if described.total_uncompressed_size > _MOST_BYTES:
            raise DatasetError(
                f"{path}: a row group of {group.num_rows} images has {described.total_uncompressed_size / 2**30:.1f} "
                "GiB, and is read whole for each of them; write the table with smaller ones "
                "(pyarrow.parquet.write_table(..., row_group_size=100))"
            )
        nulls = described.statistics.null_count if described.is_stats_set and described.statistics else None
        if nulls in (0, group.num_rows):
            filled += [nulls == 0] * group.num_rows
            continue
        for batch in file.iter_batches(batch_size=16, row_groups=[number], columns=[column]):
            filled += [value is not None for value in (_deepest(cell) for cell in batch.column(0))]
    return filled


def _deepest(cell: Any) -> Any:
    while isinstance(cell, pa.StructScalar) and cell.is_valid:
        cell = cell[0]
    return cell if cell.is_valid else None

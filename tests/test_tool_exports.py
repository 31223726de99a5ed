"""Files of JSON that no tool has written: no reader proposes them, and none ends in a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cprfl.data.readers import folders, labelme, labelstudio, parquet_table, webdataset
from cprfl.data.readers.discovery import Tree
from cprfl.errors import DatasetError
from tests.data_sets import EVERY_DIALECT, clean, touch, write_json
from tests.labelling_tools import document, in_min, read_labelme, read_studio, result, task


def test_no_reader_proposes_what_is_not_its_own(tmp_path: Path) -> None:
    touch(tmp_path / "images/0.jpg", tmp_path / "a.tar", tmp_path / "b.parquet")
    write_json(tmp_path / "instances.json", {"images": [], "annotations": [], "categories": []})
    write_json(tmp_path / "list.json", [{"a": 1}])
    write_json(tmp_path / "shapes.json", {"shapes": [], "data": "x"})
    (tmp_path / "broken.json").write_text('[{"annotations": "data" "annotation_id" "shapes"')
    for reader in (folders, labelme, labelstudio, parquet_table, webdataset):
        assert reader.discover(Tree.of(tmp_path)) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text("abz./", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["label", "type", "x"]), inner, max_size=2)
    ),
    max_leaves=3,
)


def changed(draw: Callable[[st.SearchStrategy[Any]], Any], value: Any) -> Any:
    """A JSON value with another value somewhere in it."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 3)) == 0:
        return draw(JSON)
    place: Any = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[place] = changed(draw, value[place])
    return copy


@EVERY_DIALECT
@given(data=st.data(), form=st.sampled_from(["labelme", "json", "min"]))
def test_no_json_ends_in_a_traceback(tmp_path: Path, data: st.DataObject, form: str) -> None:
    whole: dict[str, Any] = {
        "labelme": document("1.jpg", ["cat"], flags={"x": True}),
        "json": [task(1, "1.jpg", [result("choices", ["cat"])], [result("taxonomy", [["a", "b"]], id="r")])],
        "min": [in_min(1, "1.jpg", ["cat", "dog"], "choices"), in_min(2, "2.jpg", ["cat"], "rectanglelabels")],
    }
    root = clean(tmp_path)
    path = write_json(root / "e.json", changed(data.draw, whole[form]))
    try:
        manifest = read_labelme(root) if form == "labelme" else read_studio(path)
    except DatasetError as error:
        assert str(root) in str(error) or "no classes" in str(error)
    else:
        assert manifest.class_names
    for reader in (labelme, labelstudio):
        reader.discover(Tree.of(root))

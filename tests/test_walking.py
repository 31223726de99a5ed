"""What lies below a folder: linked folders too, each place once on a way down."""

from __future__ import annotations

from pathlib import Path

from cprfl.data.walking import walk, walked


def test_links_are_followed_but_never_back(tmp_path: Path) -> None:
    """To what is elsewhere; not to a folder that one is in, not above the root, and not by way of another link."""
    elsewhere, root = tmp_path / "elsewhere" / "big", tmp_path / "set" / "root"
    for folder in (elsewhere, root / "a", root / "b"):
        folder.mkdir(parents=True)
    (elsewhere / "1.jpg").touch()
    (root / "a" / "2.jpg").touch()
    (root / "3.jpg").symlink_to(elsewhere / "1.jpg")
    (root / "images").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(tmp_path)
    (root / "a" / "across").symlink_to(root / "b")
    (root / "b" / "across").symlink_to(root / "a")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    assert sorted(walked(root)) == [
        "3.jpg", "a/2.jpg", "b/across/2.jpg", "gone", "images/1.jpg",
    ]  # fmt: skip
    assert [start for start, _, _ in walk(root, lambda name: name != "a")] == ["", "b/", "b/across/", "images/"]
    assert list(walked(tmp_path / "nowhere")) == []

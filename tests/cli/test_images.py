"""Which files are meant, and what their drawings are called."""

from pathlib import Path

import pytest

from hf_detr.cli._images import drawing_names, find_files, image_ids


@pytest.fixture
def folder(tmp_path):
    names = ("a.jpg", "._a.jpg", ".hidden.png", ".DS_Store", "notes.txt", "clip.MP4", "below/b.PNG", ".git/c.png")
    for name in (*names, "__MACOSX/._a.jpg", "__MACOSX/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_of_a_folder_every_image_but_nothing_hidden(folder):
    assert find_files([str(folder)]) == [folder / "a.jpg", folder / "below/b.PNG"]


def test_of_a_pattern_images_and_videos_but_nothing_hidden(folder):
    found = find_files([f"{folder}/**/*"])
    assert sorted(found) == [folder / "a.jpg", folder / "below/b.PNG", folder / "clip.MP4"]


def test_a_hidden_file_that_is_named_is_meant(folder):
    assert find_files([str(folder / ".hidden.png")]) == [folder / ".hidden.png"]


def test_a_folder_of_videos_alone_says_how_to_name_them(folder):
    (folder / "videos").mkdir()
    (folder / "clip.MP4").rename(folder / "videos/clip.mp4")
    with pytest.raises(ValueError, match=r"no image in this folder or below.*videos/\*\.mp4"):
        find_files([str(folder / "videos")])
    assert find_files([f"{folder}/videos/*.mp4"]) == [folder / "videos/clip.mp4"]


def test_a_file_is_taken_once_and_none_of_where_drawings_go(folder):
    assert find_files([str(folder), str(folder / "a.jpg")], leave_out=folder / "below") == [folder / "a.jpg"]
    with pytest.raises(ValueError, match="where predictions are written"):
        find_files([str(folder / "below")], leave_out=folder)


def test_numbers_in_names_are_image_ids_where_all_have_one():
    assert image_ids([Path("000139.jpg"), Path("7.jpg")]) == [139, 7]
    assert image_ids([Path("000139.jpg"), Path("a.jpg")]) == [1, 2]
    assert image_ids([Path("a/7.jpg"), Path("b/7.jpg")]) == [1, 2]


def test_every_drawing_has_a_name_of_its_own_that_can_be_printed():
    files = ["a/x.jpg", "b/X.bmp", "x.png", "x.mov", "x.avi", "line\nbreak.jpg", "latin\udce9.jpg", "zürich 猫.jpg"]
    names = drawing_names([Path(file) for file in files], taken=["x.jpg"])
    assert names == [
        "x_2.jpg", "X_3.jpg", "x.png", "x.mp4", "x_2.mp4", "line%0Abreak.jpg", "latin%E9.jpg", "zürich 猫.jpg",
    ]  # fmt: skip

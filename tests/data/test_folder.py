from __future__ import annotations

import pytest
import torch

from rtdetr_tool.data.build import build_inference_dataset, build_loader
from rtdetr_tool.data.collate import FailedImage
from rtdetr_tool.data.folder import find_images, read_classmap
from rtdetr_tool.errors import DataError

from .conftest import draw_image


def test_folders_are_walked_in_order_and_each_image_comes_once(tmp_path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.jpeg", "sub/deep/d.bmp", ".hidden/e.png", "f.txt.png"):
        draw_image(tmp_path / "one" / name.lower())
        if name == "b.JPG":
            (tmp_path / "one" / "b.jpg").rename(tmp_path / "one" / "b.JPG")
    (tmp_path / "one" / "notes.txt").touch()
    draw_image(tmp_path / "two" / "z.png")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    result = [path.removeprefix(str(tmp_path)) for path in find_images([two, one, one])]
    names = ["a.png", "b.JPG", "f.txt.png", "sub/c.jpeg", "sub/deep/d.bmp"]
    assert result == ["/two/z.png", *(f"/one/{name}" for name in names)]
    assert find_images(two) == [f"{two}/z.png"] == find_images(f"{two}/z.png")


def test_missing_and_empty_folders_are_named(tmp_path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*does not exist"):
        find_images(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="contains no images"):
        find_images(str(tmp_path))


def test_a_classmap_is_one_name_per_line(tmp_path) -> None:
    path = tmp_path / "classmap.txt"
    path.write_text("\ufeffbackground\n red cell \nwhite\n\n")
    assert read_classmap(str(path)) == ["background", "red cell", "white"]
    path.write_text("a\n\nb\n")
    with pytest.raises(DataError, match="line 2: empty; expected a class name"):
        read_classmap(str(path))
    path.write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        read_classmap(str(path))
    with pytest.raises(DataError, match="Classmap not found"):
        read_classmap(str(tmp_path / "nowhere.txt"))


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_marked_and_the_rest_is_processed(tmp_path, make_spec, workers) -> None:
    for number in range(5):
        draw_image(tmp_path / f"{number}.png", seed=number)
    for number in (1, 4):
        (tmp_path / f"{number}.png").write_bytes(b"")
    spec = make_spec(infer_data_sources={"image_dir": [str(tmp_path)]}, workers=workers)
    dataset = build_inference_dataset(spec)
    batches = list(build_loader(dataset, spec, training=False))
    assert [len(batch) for batch in batches] == [1, 2, 0]
    assert [batch.images.shape for batch in batches] == [(1, 3, 64, 96), (2, 3, 64, 96), (0, 3, 64, 96)]
    assert [target.image_id for batch in batches for target in batch.targets] == [0, 2, 3]
    failures = [failure for batch in batches for failure in batch.failures]
    assert [failure.path for failure in failures] == [str(tmp_path / "1.png"), str(tmp_path / "4.png")]
    assert "the file is empty" in failures[0].message and failures[0].path in failures[0].message
    assert isinstance(dataset[1], FailedImage)
    moved = batches[1].to("cpu")
    assert moved.failures == batches[1].failures and torch.equal(moved.images, batches[1].images)


def test_inference_without_a_folder_says_which_field(make_spec) -> None:
    with pytest.raises(DataError, match=r"dataset\.infer_data_sources\.image_dir"):
        build_inference_dataset(make_spec())

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtdetr_tool.class_names import unique_names
from rtdetr_tool.errors import DataError
from rtdetr_tool.ops.classes import MSCOCO_IDS, ClassMap

names = {1: "RBC", 2: "WBC", 3: "Platelets"}


def test_auto_takes_ids_as_indices_when_all_fit() -> None:
    classes = ClassMap.from_categories(names, num_classes=4)
    assert [classes.index_of(i) for i in (1, 2, 3)] == [1, 2, 3]
    assert classes.names == [None, "RBC", "WBC", "Platelets"]
    assert classes.category_id_of(0) is None and classes.name_of(0) == "class_0"
    assert "class index = category id" in classes.describe() and "1 of 4 outputs unused" in classes.describe()


def test_auto_numbers_from_zero_when_an_id_reaches_num_classes() -> None:
    classes = ClassMap.from_categories(names, num_classes=3)
    assert [classes.index_of(i) for i in (1, 2, 3)] == [0, 1, 2]
    assert [classes.category_id_of(k) for k in range(3)] == [1, 2, 3]
    assert "category id 3 is not in 0..2" in classes.describe()


def test_contiguous_is_by_id_whatever_the_order_of_the_file() -> None:
    classes = ClassMap.from_categories({90: "z", 7: "a", 30: "m"}, num_classes=3)
    assert classes.names == ["a", "m", "z"]


def test_contiguous_can_be_set_if_raw_would_be_possible() -> None:
    classes = ClassMap.from_categories(names, num_classes=10, class_ids="contiguous")
    assert classes.index_of(1) == 0


def test_raw_refuses_an_id_equal_to_num_classes() -> None:  # TAO accepts it and crashes in CUDA indexing
    with pytest.raises(DataError, match=r"category id 3 is not in 0\.\.2.*at least 4"):
        ClassMap.from_categories(names, num_classes=3, class_ids="raw")


def test_raw_refuses_negative_ids() -> None:
    with pytest.raises(DataError, match="negative"):
        ClassMap.from_categories({-1: "a", 0: "b"}, num_classes=3, class_ids="raw")


def test_more_categories_than_classes_is_an_error_that_says_what_to_set() -> None:
    with pytest.raises(DataError, match=r"Set dataset\.num_classes to 3"):
        ClassMap.from_categories(names, num_classes=2)


def test_no_categories_is_an_error() -> None:
    with pytest.raises(DataError, match="no categories"):
        ClassMap.from_categories({}, num_classes=2)


def test_mscoco_remap_is_the_rank_among_the_eighty_ids() -> None:
    assert len(MSCOCO_IDS) == 80 and MSCOCO_IDS[0] == 1 and MSCOCO_IDS[11] == 13 and MSCOCO_IDS[79] == 90
    classes = ClassMap.from_categories({1: "person", 13: "stop sign", 90: "toothbrush"}, 80, remap_mscoco_category=True)
    assert [classes.index_of(i) for i in (1, 13, 90)] == [0, 11, 79]


@pytest.mark.parametrize(
    ("categories", "num_classes", "class_ids", "message"),
    [
        ({0: "a"}, 80, "auto", "COCO's 80 category ids"),
        ({1: "a"}, 79, "auto", "expected at least 80"),
        ({1: "a"}, 80, "raw", "cannot both be set"),
    ],
)
def test_mscoco_remap_refuses_what_it_cannot_apply(categories, num_classes, class_ids, message) -> None:
    with pytest.raises(DataError, match=message):
        ClassMap.from_categories(categories, num_classes, class_ids, remap_mscoco_category=True)


@given(
    st.dictionaries(st.integers(0, 200), st.text("abcdef", min_size=1), min_size=1, max_size=30),
    st.integers(1, 250),
)
def test_every_map_is_one_to_one_and_survives_plain_data(categories, num_classes) -> None:
    try:
        classes = ClassMap.from_categories(categories, num_classes)
    except DataError:
        assert len(categories) > num_classes
        return
    assert {classes.category_id_of(classes.index_of(i)) for i in categories} == set(categories)
    names = unique_names(categories)
    assert all(classes.name_of(classes.index_of(i)) == name for i, name in names.items())
    assert len(set(names.values())) == len(names)
    assert all(0 <= classes.index_of(i) < num_classes for i in categories)
    assert ClassMap.from_list(classes.to_list(), num_classes) == classes
    assert all(set(row) == {"index", "id", "name"} for row in classes.to_list())


def test_an_invalid_list_of_classes_is_a_data_error() -> None:
    with pytest.raises(DataError, match="index, id and name"):
        ClassMap.from_list([{"index": 0}])


def test_unknown_ids_are_named_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"Category id 9 is unknown.*'RBC'"):
        ClassMap.from_categories(names, 3).index_of(9)


def test_a_file_that_disagrees_with_the_checkpoint_is_refused_with_both_names() -> None:
    classes = ClassMap.from_categories(names, 3)
    classes.check_categories({2: "WBC"}, "val.json")
    with pytest.raises(DataError, match=r"Category 2 is 'leucocyte' in val\.json, but 'WBC'"):
        classes.check_categories({2: "leucocyte"}, "val.json")
    with pytest.raises(DataError, match=r"val\.json has category 4 \('dust'\)"):
        classes.check_categories({4: "dust"}, "val.json")


def names_only(*names: str) -> ClassMap:
    """Classes of a file with names but no category ids."""
    return ClassMap.from_list([{"index": i, "id": None, "name": name} for i, name in enumerate(names)])


def test_classes_without_ids_take_the_ids_that_an_annotation_file_has_for_their_names():
    known = names_only("cow", "cat", "dog")
    assert not known.ids_known and [entry["id"] for entry in known.to_list()] == [None] * 3
    result = known.with_ids_of({9: "dog", 4: "cow"}, "a.json")
    assert result.ids_known and result.num_classes == 3
    assert result.to_list() == [{"index": 0, "id": 4, "name": "cow"}, {"index": 2, "id": 9, "name": "dog"}]


def test_a_few_other_spellings_are_matched_by_the_order_of_ids_with_a_message():
    result = names_only("person", "bicycle", "motorbike").with_ids_of({4: "motorcycle", 2: "bicycle", 1: "person"}, "a")
    assert [(entry["index"], entry["id"], entry["name"]) for entry in result.to_list()] == [
        (0, 1, "person"), (1, 2, "bicycle"), (2, 4, "motorcycle")
    ]  # fmt: skip
    assert "'motorbike' is 'motorcycle'" in result.describe()


def test_another_order_of_names_never_counts_as_other_spellings():
    with pytest.raises(DataError, match="do not have: 'motorcycle'"):
        names_only("person", "car", "bicycle", "motorbike", "bus").with_ids_of(
            {1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "bus"}, "a.json"
        )


def test_categories_unknown_to_the_weights_are_named():
    with pytest.raises(DataError, match=r"a\.json has categories that the weights do not have: 'zebra'.*'cow'"):
        names_only("cow", "cat", "dog").with_ids_of({1: "zebra", 2: "cat"}, "a.json")


def test_some_classes_with_and_some_without_an_id_are_an_error():
    with pytest.raises(DataError, match="index, id and name"):
        ClassMap.from_list([{"index": 0, "id": 1, "name": "a"}, {"index": 1, "id": None, "name": "b"}])

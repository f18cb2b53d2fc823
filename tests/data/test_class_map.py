"""Classes that are kept and merged: boxes, ids, notes, and every name that is none."""

import pytest

from focal_det.data.class_map import ClassMap, renumbered, split_names
from focal_det.errors import InputError
from focal_det.formats.coco import CocoFile


def file(*names):
    """A file with a box of each class, and a class more."""
    categories = [{"id": 10 * i, "name": name} for i, name in enumerate((*names, "none"), start=1)]
    rows = [{"id": i, "image_id": 1, "category_id": 10 * i, "bbox": [i, 0, 1, 1]} for i in range(1, len(names) + 1)]
    return CocoFile({"info": {}, "images": [{"id": 1}], "annotations": rows, "categories": categories}, ["before"])


def classes(of):
    return [(c["id"], c["name"]) for c in of.coco["categories"]]


def test_merged_classes_have_the_id_of_the_first_and_the_others_are_left_out():
    given = file("cat", "car", "dog", "bus")
    found = ClassMap.parse(["pet", "car"], ["pet=dog, cat"]).apply(given, "mine")
    assert classes(found) == [(10, "pet"), (20, "car")]
    assert [(a["category_id"], a["bbox"][0]) for a in found.coco["annotations"]] == [(10, 1), (20, 2), (10, 3)]
    assert found.notes == [
        "before",
        "mine: dog became pet (1 boxes)",
        "mine: cat became pet (1 boxes)",
        "mine: left out 1 boxes of classes that are not kept: bus, none",
    ]
    assert len(given.coco["annotations"]) == 4  # as it was
    assert ClassMap().apply(given, "mine") is given


def test_a_class_may_take_in_others():
    found = ClassMap.parse([], ["dog=cat,dog"]).apply(file("cat", "dog"), "mine")
    assert classes(found) == [(10, "dog"), (30, "none")]
    assert found.notes[1:] == ["mine: cat became dog (1 boxes)"]


@pytest.mark.parametrize(
    ("keep", "merges", "said"),
    [
        ([], ["pet"], "DATASETS.MERGE_CLASSES has 'pet'; write NEW=OLD,OLD,... as in pet=cat,dog"),
        ([], ["=cat"], "write NEW=OLD"),
        ([], ["pet=cat,"], "write NEW=OLD"),
        ([], ["pet=cat,dog", "x=cat"], "DATASETS.MERGE_CLASSES merges class cat twice; leave one out"),
        (
            [],
            ["b=a", "c=b"],
            "DATASETS.MERGE_CLASSES merges into and from b (from a, into c); merge all of them into one",
        ),
        (["cat"], ["pet=cat"], "DATASETS.CLASSES has cat, which is merged into another; keep that one"),
    ],
)
def test_texts_that_are_none(keep, merges, said):
    with pytest.raises(InputError) as caught:
        ClassMap.parse(keep, merges)
    assert said in str(caught.value)


def test_names_that_no_set_has():
    problems = ClassMap.parse(["pet", "crane"], ["pet=cat,dgo"]).problems({"cat", "dog"})
    assert problems == [
        "DATASETS.MERGE_CLASSES has 'dgo', which is not a class of these sets; did you mean 'dog'?",
        "DATASETS.CLASSES has 'crane', which is not a class of these sets; there are dog, pet",
    ]
    assert ClassMap.parse(["pet"], ["pet=cat,dog"]).problems({"cat", "dog"}) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat, dog", ["cat", "dog"]),
        ('"cat, black",dog', ["cat, black", "dog"]),
        ('dog, "a ""cat"", black"', ["dog", 'a "cat", black']),
        ('6" pipe,dog', ['6" pipe', "dog"]),
        ("", [""]),
        ("cat,", ["cat", ""]),
    ],
)
def test_names_with_commas_are_in_quotes(text, names):
    assert split_names(text) == names


def test_a_name_that_was_split_at_its_comma_is_told_how_to_be_written():
    there = {"cat, black", "dog"}
    (problem, _) = ClassMap.parse(["cat", "black"], []).problems(there)
    said = "a name with a comma is written in quotes, as in '\"cat, black\"'"
    assert problem == f"DATASETS.CLASSES has 'cat', which is not a class of these sets; {said}"
    assert ClassMap.parse(["cat, black"], []).problems(there) == []
    assert ClassMap.parse([], ['pet="cat, black",dog']).merged == {"cat, black": "pet", "dog": "pet"}


def test_numbering_anew_needs_the_classes_of_the_objects_alone():
    found = renumbered(file("cat", "dog"), "mine", ["dog", "ant", "cat"])
    assert classes(found) == [(1, "dog"), (2, "ant"), (3, "cat")]
    assert [a["category_id"] for a in found.coco["annotations"]] == [3, 1]
    with pytest.raises(
        InputError, match="mine: class dog is not among cat; correct these objects, or leave them out by --classes"
    ):
        renumbered(file("cat", "dog"), "mine", ["cat"])

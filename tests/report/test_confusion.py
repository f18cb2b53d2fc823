"""The confusion matrix as it is shown."""

import numpy as np

from focal_det.report.confusion import MOST_CLASSES, make_confusion


def test_a_few_classes_are_shown_as_they_are():
    counts = np.array([[6, 2, 0], [1, 3, 4], [5, 0, 0]])
    table = make_confusion(counts, ["cat", "dog"])
    assert table.names == ["cat", "dog"]
    assert table.rows[0] == ("cat", [(6, 0.75, True), (2, 0.25, False), (0, 0.0, False)])
    assert table.rows[2] == ("nothing there", [(5, 1.0, False), (0, 0.0, False), (0, 0.0, False)])
    assert table.pairs == [("cat", "dog", 2, 0.25), ("dog", "cat", 1, 0.125)]


def test_of_80_classes_the_most_confused_are_shown_and_nothing_is_lost():
    counts = np.diag(np.full(81, 10))
    counts[80, 80] = 0
    counts[70, 71] = 9
    counts[:, 80] += np.arange(81) % 2  # missed
    table = make_confusion(counts, [f"k{i}" for i in range(80)])
    assert len(table.names) == MOST_CLASSES + 1
    assert {"k70", "k71"} < set(table.names)
    assert table.names[-1] == "other classes"
    assert sum(count for _, cells in table.rows for count, _, _ in cells) == counts.sum()
    assert table.pairs == [("k70", "k71", 9, 9 / 19)]
    others = dict(table.rows)["other classes"]
    assert others[-2] == (10 * 60, others[-2][1], True)


def test_a_class_without_objects_and_no_detections_at_all():
    assert make_confusion(np.zeros((2, 2), int), ["cat"]).rows[0] == ("cat", [(0, 0.0, True), (0, 0.0, False)])

"""What is read of the metrics that a training left."""

from focal_det.paper.results import read_metrics


def test_metrics_that_are_cut_short_or_no_numbers_are_passed_over(tmp_path):
    lines = ["5", "null", "[]", '{"iteration": "x"}', '{"iteration": 2, "bbox/AP": "x", "bbox/AP50": Infinity}', "{"]
    (tmp_path / "metrics.json").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    assert read_metrics(tmp_path, iterations=3, test_sets=["a"]) == {}
    with (tmp_path / "metrics.json").open("a") as file:
        file.write('{"iteration": 2, "bbox/AP": 20.0, "bbox/APl": NaN, "bbox/APs": 10.0, "time": 0.5}\n')
    # no object is that large, so there is nothing to say about APl
    assert read_metrics(tmp_path, iterations=3, test_sets=["a"]) == {"AP": 20.0, "APs": 10.0, "s_per_iteration": 0.5}
    assert read_metrics(tmp_path, iterations=4, test_sets=["a"]) == {}


def test_without_a_detection_all_is_0_and_of_two_test_sets_the_first_counts(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 2, "a/bbox/AP": NaN, "a/bbox/APs": NaN, "b/bbox/AP": 50.0}')
    assert read_metrics(tmp_path, iterations=3, test_sets=["a", "b"]) == {"AP": 0.0, "APs": 0.0}
    assert read_metrics(tmp_path, iterations=3, test_sets=["b", "a"]) == {"AP": 50.0}

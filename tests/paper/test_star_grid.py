"""Figure 7: a curve and a field for every setting that is finished."""

from focal_det.paper.star_grid import draw_star_grid


def test_every_finished_setting_has_a_curve_and_its_ap():
    figure = draw_star_grid({(2.0, 1.0): 33.8, (4.0, 0.0): 23.9, (0.5, 0.0): 10.0}, "title")
    curves, grid = figure.axes
    assert len(curves.lines) == 3
    assert sorted(text.get_text() for text in grid.texts) == ["10.0", "23.9", "33.8"]
    assert [label.get_text() for label in grid.get_yticklabels()] == ["0.5", "2", "4"]
    colors = {line.get_color() for line in curves.lines}
    assert len(colors) == 3


def test_without_any_it_is_empty():
    assert [len(axes.lines) for axes in draw_star_grid({}, "title").axes] == [0, 0]

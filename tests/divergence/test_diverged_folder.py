"""Where a run has diverged, as its folder tells a later start."""

import pytest
from detectron2.utils import comm

from focal_det.divergence.diverged_folder import diverged_iterations, note_divergence

pytestmark = pytest.mark.detectron2


def test_a_start_looks_at_each_step_where_one_before_diverged_though_nothing_could_be_kept(tmp_path):
    note_divergence(str(tmp_path), 30)
    assert diverged_iterations(str(tmp_path), 20) == frozenset(range(10, 31))


def test_where_the_folder_looks_different_from_other_ranks_that_of_rank_0_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "all_gather", lambda own: [{7}, own])
    note_divergence(str(tmp_path), 30)
    assert diverged_iterations(str(tmp_path), 2) == frozenset({5, 6, 7})

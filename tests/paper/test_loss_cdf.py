"""Figure 4's histogram against sorting all examples, and what counts as an example."""

import math
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from focal_det.losses import focal_loss
from focal_det.paper import loss_cdf as loss_cdf_module
from focal_det.paper.loss_cdf import (
    LossHistogram,
    draw_loss_cdf,
    easy_negatives_as_csv,
    loss_cdf,
    share_of_easy_negatives,
    shares_as_csv,
    split_examples,
    stream_logits_and_labels,
)

pytestmark = pytest.mark.detectron2

GAMMAS = [0.0, 0.5, 1.0, 2.0]


def sorted_curve(x_t, gamma):
    """The plain way: every loss, sorted."""
    labels = torch.zeros(len(x_t), dtype=torch.int64)
    losses = focal_loss(x_t.double()[:, None], labels, alpha=None, gamma=gamma, reduction="none")[:, 0]
    cumulative = losses.sort().values.cumsum(0) / losses.sum()
    return np.arange(1, len(x_t) + 1) / len(x_t), cumulative.numpy()


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_curve_is_that_of_the_sorted_losses(gamma):
    x_t = torch.randn(50_000, generator=torch.Generator().manual_seed(1)) * 4 + 2
    histogram = LossHistogram(GAMMAS)
    histogram.add(x_t[:20_001])
    histogram.add(x_t[20_001:])
    assert histogram.total == 50_000
    examples, losses = histogram.curve(gamma)
    assert (np.diff(examples) >= 0).all()
    assert (np.diff(losses) >= 0).all()
    assert losses[-1] == pytest.approx(1)
    found = np.interp(sorted_curve(x_t, gamma)[0], examples, losses)
    assert np.abs(found - sorted_curve(x_t, gamma)[1]).max() < 1e-4
    hardest = sorted_curve(x_t, gamma)[1]
    assert histogram.share_of_hardest(0.1, gamma) == pytest.approx(1 - hardest[44_999], abs=1e-4)


def test_literal_shares():
    # cross-entropy of nine examples at x_t = 0 is log 2 each, of one at -20 about 20: 20 / (20 + 9 log 2)
    histogram = LossHistogram([0.0])
    histogram.add(torch.tensor([0.0] * 9 + [-20.0]))
    assert histogram.share_of_hardest(0.1, 0.0) == pytest.approx(20 / (20 + 9 * math.log(2)), abs=1e-6)
    assert histogram.share_of_hardest(1.0, 0.0) == 1
    # within the nine equal ones it is a straight line
    half = (20 + 4 * math.log(2)) / (20 + 9 * math.log(2))
    assert histogram.share_of_hardest(0.5, 0.0) == pytest.approx(half, abs=1e-6)


def test_extreme_logits_keep_their_loss():
    histogram = LossHistogram([0.0, 2.0])
    histogram.add(torch.tensor([-1000.0, 1000.0, 50.0, -50.0]))
    assert histogram.sums[0].sum() == pytest.approx(1050)
    assert histogram.counts[[0, -1]].tolist() == [2, 2]


def test_the_share_of_easy_negatives_in_the_loss_and_in_its_gradient():
    # a positive at p = .1, a thousand negatives there, too, and a hard one at p = .9; cross-entropy's slope is 1 - p_t
    kinds = {"positive": LossHistogram([0.0, 2.0]), "negative": LossHistogram([0.0, 2.0])}
    kinds["positive"].add(torch.tensor([-math.log(9)]))
    kinds["negative"].add(torch.tensor([math.log(9)] * 1000 + [-math.log(9)]))
    easy, hard = -math.log(0.9), -math.log(0.1)
    loss, gradient = share_of_easy_negatives(kinds, 0.0)
    assert loss == pytest.approx(1000 * easy / (1000 * easy + 2 * hard), abs=1e-6)
    assert gradient == pytest.approx(100 / (100 + 2 * 0.9), abs=1e-4)
    easy, hard = 0.01 * easy, 0.81 * hard
    assert share_of_easy_negatives(kinds, 2.0)[0] == pytest.approx(1000 * easy / (1000 * easy + 2 * hard), abs=1e-6)
    # d/dx of -(1 - p)^2 log p is (1 - p)^2 (2 p log p - (1 - p))
    easy, hard = (q**2 * (q - 2 * (1 - q) * math.log(1 - q)) for q in (0.1, 0.9))
    assert share_of_easy_negatives(kinds, 2.0)[1] == pytest.approx(1000 * easy / (1000 * easy + 2 * hard), abs=2e-3)
    lines = easy_negatives_as_csv(kinds).splitlines()
    assert lines[0] == "gamma,share_of_loss,share_of_gradient"
    assert [float(word) for word in lines[1].split(",")] == pytest.approx([0.0, loss, gradient], abs=1e-6)


def test_examples_are_pairs_of_anchor_and_class():
    logits = torch.arange(12.0).view(4, 3)  # anchors 0..3
    labels = torch.tensor([1, 3, -1, 0])  # an object of class 1, background, ignored, an object of class 0
    positive, negative = split_examples(logits, labels)
    assert positive.tolist() == [1.0, 9.0]
    assert sorted(negative.tolist()) == sorted([-0.0, -2.0, -3.0, -4.0, -5.0, -10.0, -11.0])


def test_a_stream_is_counted_image_by_image():
    stream = [(torch.zeros(2, 5, 3), torch.tensor([[0, 3, 3, 3, -1]] * 2)) for _ in range(3)]
    positives, negatives = loss_cdf(iter(stream), [2.0])
    assert (positives.total, negatives.total) == (6, 6 * 4 * 3 - 6)


def test_figures_and_table_have_every_gamma():
    histogram = LossHistogram(GAMMAS)
    histogram.add(torch.linspace(-3, 3, 100))
    figures = draw_loss_cdf({"positive": histogram, "negative": histogram})
    assert list(figures) == ["figure4_loss_cdf_positive", "figure4_loss_cdf_negative"]
    assert len(figures["figure4_loss_cdf_positive"].axes[0].lines) == 4
    lines = shares_as_csv({"positive": histogram}).splitlines()
    assert lines[0] == "examples,gamma,hardest_fraction,share_of_loss"
    assert len(lines) == 1 + 4 * 6


def test_no_examples_and_non_finite_logits_are_refused():
    with pytest.raises(ValueError, match="with gamma 0 no example of 0 has a loss above zero"):
        LossHistogram([0.0]).curve(0.0)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(FloatingPointError, match="a class logit is not finite"):
            LossHistogram([0.0]).add(torch.tensor([1.0, value]))


@pytest.mark.parametrize(("images", "expected"), [(3, [0, 3, 6]), (None, [*range(10)])])
def test_some_images_are_spread_over_the_set(monkeypatch, tiny_cfg, images, expected):
    seen = []
    monkeypatch.setattr(loss_cdf_module, "SafeCheckpointer", MagicMock())
    monkeypatch.setattr(loss_cdf_module.DatasetCatalog, "get", lambda name: [*range(10)])
    monkeypatch.setattr(loss_cdf_module, "build_annotated_loader", lambda cfg, records: seen.extend(records) or [])
    assert list(stream_logits_and_labels(tiny_cfg(), images)) == []
    assert seen == expected

"""Figure 4: how the focal loss of a trained model is spread over its easy and hard examples.

An example is one decision of the class subnet, an (anchor, class) pair: positive where the anchor is assigned to an
object of that class, else negative; ignored anchors have none. The loss falls with x_t = yx for every gamma, so one
order of the examples serves all gammas, and a fine histogram over x_t keeps it: memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from ..checkpoint.safe_load import SafeCheckpointer
from ..data.shared_records import build_annotated_loader
from ..data.statistics import evenly_spread
from ..data.tile_records import cut_records, tiles_of
from ..errors import InputError
from ..losses import focal_loss
from .figures import as_csv, new_axes

HARDEST = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5)
_LIMIT, _BINS = 40.0, 16_000  # x_t beyond +-40 goes to the outermost bins; a bin is .005 wide
_CHUNK = 1 << 20  # examples at a time, so that no copy in float64 of all logits is made


class LossHistogram:
    """Number of examples and their summed focal losses in bins of x_t, hardest first.

    Args:
        gammas: of the losses, each >= 0; 0 is cross-entropy. There is no alpha: it scales all examples of a kind alike.
    """

    def __init__(self, gammas: Sequence[float]) -> None:
        self.gammas = tuple(gammas)
        self.counts = np.zeros(_BINS, dtype=np.int64)  # (bins,)
        self.sums = np.zeros((len(self.gammas), _BINS))  # (gammas, bins)

    def add(self, x_t: Tensor) -> None:
        """Count examples (M,).

        Raises:
            FloatingPointError: one of them is not finite.
        """
        for chunk in x_t.split(_CHUNK):
            chunk = chunk.double().cpu()
            if not chunk.isfinite().all():
                raise FloatingPointError("a class logit is not finite: the model has diverged")
            bins = ((chunk + _LIMIT) * (_BINS / (2 * _LIMIT))).long().clamp_(0, _BINS - 1)
            self.counts += torch.bincount(bins, minlength=_BINS).numpy()
            as_positives = torch.zeros(len(chunk), dtype=torch.int64)
            for i, gamma in enumerate(self.gammas):
                losses = focal_loss(chunk[:, None], as_positives, alpha=None, gamma=gamma, reduction="none")
                self.sums[i] += torch.bincount(bins, weights=losses[:, 0], minlength=_BINS).numpy()

    @property
    def total(self) -> int:
        """Examples seen."""
        return int(self.counts.sum())

    def curve(self, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the cumulative distribution: fraction of the examples, easiest first, and of the loss they carry.

        Within a bin it is a straight line; the loss differs there by half a percent at most for each unit of gamma + 1.

        Raises:
            ValueError: no example has a loss above zero.
        """
        sums = self.sums[self.gammas.index(gamma)]
        if not sums.sum() > 0:
            raise ValueError(f"with gamma {gamma:g} no example of {self.total} has a loss above zero")
        filled = np.flatnonzero(self.counts)[::-1]  # easiest first
        examples = np.concatenate([[0.0], np.cumsum(self.counts[filled]) / self.total])
        losses = np.concatenate([[0.0], np.cumsum(sums[filled]) / sums.sum()])
        return examples, losses

    def gradients(self, gamma: float) -> np.ndarray:
        """Return the sum of the losses' slopes in each bin (bins,), each slope taken in the middle of its bin."""
        middles = ((torch.arange(_BINS, dtype=torch.float64) + 0.5) * (2 * _LIMIT / _BINS) - _LIMIT).requires_grad_()
        as_positives = torch.zeros(_BINS, dtype=torch.int64)
        focal_loss(middles[:, None], as_positives, alpha=None, gamma=gamma).backward()
        assert middles.grad is not None
        return self.counts * -middles.grad.numpy()

    def share_of_hardest(self, fraction: float, gamma: float) -> float:
        """Return the share of the loss that the hardest `fraction` of the examples carries, both in [0, 1]."""
        examples, losses = self.curve(gamma)
        return float(1 - np.interp(1 - fraction, examples, losses))


def split_examples(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return x_t of the positive and of the negative examples, (P,) and (M,).

    Args:
        logits: (..., K).
        labels: (...) int64, 0..K-1 class, K background, -1 ignored.
    """
    kept = labels >= 0
    logits, labels = logits[kept], labels[kept]
    positive = torch.nn.functional.one_hot(labels, logits.shape[-1] + 1)[:, :-1].bool()
    return logits[positive], -logits[~positive]


def loss_cdf(examples: Iterable[tuple[Tensor, Tensor]], gammas: Sequence[float]) -> tuple[LossHistogram, LossHistogram]:
    """Return histograms of the positives and the negatives of a stream of (logits, labels), see `split_examples`."""
    positives, negatives = LossHistogram(gammas), LossHistogram(gammas)
    for logits, labels in examples:
        for image in zip(logits, labels, strict=True):
            of_positives, of_negatives = split_examples(*image)
            positives.add(of_positives)
            negatives.add(of_negatives)
    return positives, negatives


def model_loss_cdf(cfg: CfgNode, gammas: Sequence[float], images: int | None = None) -> dict[str, LossHistogram]:
    """Return the histograms of a model's "positive" and "negative" examples, each with a loss above zero.

    Args:
        cfg, images: see `stream_logits_and_labels`.

    Raises:
        InputError: a model that has diverged or has no loss, or a data set without examples of a kind.
    """
    try:
        positives, negatives = loss_cdf(stream_logits_and_labels(cfg, images), gammas)
    except FloatingPointError as error:
        raise InputError(f"{cfg.MODEL.WEIGHTS}: {error}") from error
    kinds = {"positive": positives, "negative": negatives}
    for kind, histogram in kinds.items():
        if histogram.total == 0:
            raise InputError(f"data set {cfg.DATASETS.TEST[0]}: no {kind} examples in the images looked at")
    try:
        shares(kinds)  # which need a loss above zero
    except ValueError as error:
        raise InputError(f"{cfg.MODEL.WEIGHTS}: {error}") from error
    return kinds


def draw_loss_cdf(kinds: Mapping[str, LossHistogram]) -> dict[str, Figure]:
    """Draw figure 4: for each kind of example the curve of every gamma."""
    figures = {}
    for kind, histogram in kinds.items():
        figure, axes = new_axes(f"fraction of the {histogram.total:,} {kind} examples", "cumulative normalised loss")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        for gamma in histogram.gammas:
            axes.plot(*histogram.curve(gamma), label=rf"$\gamma$ = {gamma:g}")
        axes.legend(frameon=False)
        figures[f"figure4_loss_cdf_{kind}"] = figure
    return figures


def shares(kinds: Mapping[str, LossHistogram]) -> dict[tuple[str, float, float], float]:
    """Return what the hardest fractions carry of the loss, by kind, gamma and fraction."""
    return {
        (kind, gamma, fraction): histogram.share_of_hardest(fraction, gamma)
        for kind, histogram in kinds.items()
        for gamma in histogram.gammas
        for fraction in HARDEST
    }


def share_of_easy_negatives(kinds: Mapping[str, LossHistogram], gamma: float) -> tuple[float, float]:
    """Return which shares of the loss and of its gradient, summed over all examples, the easy negatives carry.

    Easy are those with p_t > .5 (section 3.2); there is no alpha.

    Args:
        kinds: the "positive" and the "negative" examples.
    """
    positives, negatives = kinds["positive"], kinds["negative"]

    def share(of_positives: np.ndarray, of_negatives: np.ndarray) -> float:
        return float(of_negatives[_BINS // 2 :].sum() / (of_positives.sum() + of_negatives.sum()))

    index = negatives.gammas.index(gamma)
    of_loss = share(positives.sums[index], negatives.sums[index])
    return of_loss, share(positives.gradients(gamma), negatives.gradients(gamma))


def easy_negatives_as_csv(kinds: Mapping[str, LossHistogram]) -> str:
    """Return `share_of_easy_negatives` at every gamma as CSV with a header."""
    rows = [
        (gamma, *(f"{share:.6f}" for share in share_of_easy_negatives(kinds, gamma)))
        for gamma in kinds["negative"].gammas
    ]
    return as_csv(["gamma", "share_of_loss", "share_of_gradient"], rows)


def shares_as_csv(kinds: Mapping[str, LossHistogram]) -> str:
    """Return `shares` as CSV with a header."""
    rows = [(*key, f"{share:.6f}") for key, share in shares(kinds).items()]
    return as_csv(["examples", "gamma", "hardest_fraction", "share_of_loss"], rows)


def stream_logits_and_labels(cfg: CfgNode, images: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield class logits (1, R, K) and labels (1, R) of each image, or tile, of the first test set, resized as there.

    Args:
        cfg: of a FocalRetinaNet whose first test set is registered; MODEL.WEIGHTS are loaded.
        images: look at so many, evenly spread over the set; None for all.
    """
    model = build_model(cfg).eval()
    SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    records = cut_records(records if images is None else evenly_spread(records, images), tiles_of(cfg))
    for batch in tqdm(build_annotated_loader(cfg, records), unit="image", disable=None):
        with torch.inference_mode():
            yield model.class_logits_and_labels(batch)

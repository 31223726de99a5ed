"""Graphs over the classes, and the network that passes class embeddings along them (ML-GCN, CAPNET).

A graph is a matrix [C, C]: row i weighs the classes that class i hears from, itself included. Both graphs here follow
from facts alone and are never trained.

Shapes: C classes, E channels of a text embedding, I and O channels into and out of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GraphNetwork(nn.Module):
    """Graph convolutions H' = A (H W), with a LeakyReLU between them and none after the last.

    The layer is Kipf and Welling's (ICLR 2017) as ML-GCN uses it (Chen et al., CVPR 2019, section 3): no bias, weights
    drawn from U(-1/sqrt(O), 1/sqrt(O)).

    Args:
        widths: channels of the input, of each hidden layer and of the output: one layer fewer than widths.
        slope: of the LeakyReLU at negative values.

    Raises:
        ValueError: for fewer than two widths, which make no layer.
    """

    def __init__(self, widths: Sequence[int], slope: float = 0.2) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"widths {list(widths)} make no layer; give those of the input and of the output at least")
        self.slope = slope
        self.weights_IO = nn.ParameterList(
            nn.Parameter(torch.empty(width, following).uniform_(-1, 1) / math.sqrt(following))
            for width, following in pairwise(widths)
        )

    def forward(self, x_CI: Tensor, adjacency_CC: Tensor) -> Tensor:
        """What each class has heard after all layers, [C, O] of [C, I] and the graph [C, C]."""
        for depth, weight_IO in enumerate(self.weights_IO):
            if depth:
                x_CI = F.leaky_relu(x_CI, self.slope)
            x_CI = adjacency_CC @ (x_CI @ weight_IO)
        return x_CI


def label_graph(text_CE: Tensor, top_k: int, reweight: float, temperature: float) -> Tensor:
    """The graph that text alone gives, as in the development state of CAPNET (arXiv 2511.20641; methods.md, B.2).

    R is the cosine of the rows, of which each row keeps its ``top_k`` largest entries, the class itself among them.
    R'_ij = s R_ij / (sum of the kept R_ij, j not i) for the other kept classes, R'_ii = 1 - s. The result is the
    softmax of R' / T over the kept entries of a row, and 0 elsewhere: finite, and each row sums to 1.

    Of opposed texts the paper says nothing, since cosines of CLIP's texts are positive; those of random embeddings are
    not. A negative R_ij counts as 0, for else a row's sum could cancel, or turn the sign of its shares. A row without
    positive R_ij shares out nothing: its others stay 0 in R', which the softmax weighs alike.

    Args:
        text_CE: embeddings of the class names [C, E], of any length; a row of zeros is related to no other.
        top_k: entries kept in a row, at least 1; all where there are fewer classes.
        reweight: s, between 0 and 1.
        temperature: T, above 0.

    Returns:
        [C, C], in the type of the embeddings.
    """
    unit_CE = F.normalize(text_CE, dim=1)
    cosine_CC = unit_CE @ unit_CE.T
    itself_CC = torch.eye(len(text_CE), dtype=torch.bool, device=text_CE.device)
    # Neither rounding nor another class of the same text may put a class out of its own row.
    ranked_CC = cosine_CC.masked_fill(itself_CC, math.inf)
    chosen_CK = ranked_CC.topk(min(top_k, len(text_CE)), dim=1).indices
    kept_CC = torch.zeros_like(itself_CC).scatter(1, chosen_CK, True)
    others_CC = cosine_CC.clamp(min=0) * (kept_CC & ~itself_CC)
    total_C1 = others_CC.sum(dim=1, keepdim=True)
    shares_CC = reweight * others_CC / total_C1.masked_fill(total_C1 == 0, 1)
    related_CC = shares_CC.masked_fill(itself_CC, 1 - reweight)
    return (related_CC / temperature).masked_fill(~kept_CC, -math.inf).softmax(dim=1)


def conditional_graph(co_occurrence_CC: Tensor, threshold: float, reweight: float) -> Tensor:
    """ML-GCN's graph (Chen et al., CVPR 2019, "Correlation Matrix of ML-GCN"): who is often seen with whom.

    P(j|i) = M_ij / M_ii of the counts M. Class j is a neighbour of i where P(j|i) >= tau, which need not hold the other
    way round. The neighbours of i share the weight p equally and i keeps 1 - p, so that no class is smoothed away by
    many neighbours. Then D^-1/2 A D^-1/2, D the sums of the rows, as GCN normalises (Kipf and Welling, ICLR 2017).

    A class without neighbours, or without images, keeps only itself, with weight 1 once normalised. The counts of a
    class are the diagonal's: those of other images, such as held-out ones, would make no conditional probabilities.
    (The released code passes messages along the transpose, from i to its neighbours; this is the formula as printed.)

    Args:
        co_occurrence_CC: M, images that show both classes, whole numbers; on the diagonal those that show the class.
        threshold: tau, above 0.
        reweight: p, at least 0 and below 1.

    Returns:
        [C, C], float32.
    """
    counts_CC = co_occurrence_CC.float()
    itself_CC = torch.eye(len(counts_CC), dtype=torch.bool, device=counts_CC.device)
    conditional_CC = counts_CC / counts_CC.diagonal().clamp(min=1)[:, None]
    neighbours_CC = ((conditional_CC >= threshold) & ~itself_CC).float()
    shared_CC = reweight * neighbours_CC / neighbours_CC.sum(dim=1, keepdim=True).clamp(min=1)
    adjacency_CC = shared_CC.masked_fill(itself_CC, 1 - reweight)
    scale_C = adjacency_CC.sum(dim=1).rsqrt()
    return scale_C[:, None] * adjacency_CC * scale_C

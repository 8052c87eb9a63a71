"""ONNX function bodies of RpnCandidates and BoxCandidates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from carafe_deploy.operators.candidates import BOX_CANDIDATES, MAX_LOG_RATIO, RPN_CANDIDATES
from carafe_deploy.ops.body_writer import FLOAT, INT64, BodyWriter

__all__ = ["box_candidates_body", "rpn_candidates_body"]


def rpn_candidates_body(*, strides: Sequence[int], opset: int) -> onnx.FunctionProto:
    """Function for ``RpnCandidates(image_sizes, anchors, normalization, maps0, maps1, ...)``.

    The other attributes are taken from the node at run time. ONNX defines that TopK ranks equal
    values by lower index.

    Args:
        strides: of the levels, in image pixels.
        opset: version of the standard operators, 18 or later.

    Returns:
        Function whose maps are first the logits [B, A, H_l, W_l], then the deltas
        [B, 4*A, H_l, W_l] of every level, and whose outputs are boxes [B, L, K, 4] and scores
        [B, L, K], both float32.
    """
    body = BodyWriter()
    levels = len(strides)
    wanted = body.given("num_candidates")
    wanted = body.Mul(wanted, body.called_with(strides=tuple(strides)))
    batch = body.Shape("image_sizes", start=0, end=1)
    per_pixel = body.Shape("anchors", start=1, end=2)
    scores, boxes, deltas = [], [], []
    for level, stride in enumerate(strides):
        score, index = _best(body, f"maps{level}", batch, wanted)
        height, width = body.dims(f"maps{level}", 4)[2:]
        pixel = body.Div(index, per_pixel)  # [B, K]
        anchor = body.Sub(index, body.Mul(pixel, per_pixel))
        y = body.Div(pixel, width)
        x = body.Sub(pixel, body.Mul(y, width))
        x, y = (body.Unsqueeze(body.Mul(each, stride), 2) for each in (x, y))
        corner = body.Cast(body.Concat(x, y, x, y, axis=2), to=FLOAT)
        base = body.Gather(body.Gather("anchors", np.array(level)), anchor)  # [B, K, 4]
        scores.append(body.Unsqueeze(score, 1))
        boxes.append(body.Unsqueeze(body.Add(corner, base), 1))
        # Coordinate j of an anchor lies in channel 4*anchor + j.
        area = body.Mul(height, width)
        first = body.Add(body.Mul(body.Mul(anchor, 4), area), pixel)
        places = body.Add(body.Unsqueeze(first, 2), body.Mul(area, [0, 1, 2, 3]))
        places = body.reshape(places, batch, body.Mul(wanted, 4))
        flat = body.reshape(f"maps{levels + level}", batch, body.Mul(body.Mul(per_pixel, 4), area))
        found = body.Cast(body.GatherElements(flat, places, axis=1), to=FLOAT)
        deltas.append(body.reshape(found, batch, 1, wanted, 4))
    score, box, delta = (body.Concat(*each, axis=1) for each in (scores, boxes, deltas))
    box = _decode(body, box, delta)
    x1, y1, x2, y2 = body.Split(box, axis=3, num_outputs=4, out=4)
    least = body.given_float("min_size")
    large = body.And(body.Greater(body.Sub(x2, x1), least), body.Greater(body.Sub(y2, y1), least))
    large = body.Or(large, body.Less(least, 0.0))
    kept = body.And(large, body.Greater(body.Unsqueeze(score, 3), -math.inf))  # [B, L, K, 1]
    body.Where(kept, box, 0.0, out="boxes")
    body.Where(body.Squeeze(kept, 3), score, -math.inf, out="scores")
    overload = f"l{'_'.join(map(str, strides))}"
    return body.function(RPN_CANDIDATES, opset=opset, overload=overload, tensors=3 + 2 * levels)


def _best(body: BodyWriter, logits: str, batch: str, wanted: str) -> tuple[str, str]:
    """Best logits of a level and their numbers, [B, K] each; -inf where there are no more."""
    scores = body.Cast(body.Transpose(logits, perm=[0, 2, 3, 1]), to=FLOAT)
    total = body.Div(body.Size(scores), body.Max(batch, 1))
    scores = body.reshape(scores, batch, body.Unsqueeze(body.Squeeze(total), 0))
    scores = body.Where(body.IsNaN(scores), -math.inf, scores)
    # Without a row TopK ends the process (ONNX Runtime 1.30); a level may have less than K anchors.
    lacking = body.Sub(body.Max(batch, 1), batch)
    scores = body.Pad(scores, body.Concat([0, 0], lacking, wanted, axis=0), -math.inf)
    best, index = body.TopK(scores, wanted, out=2)
    best, index = (body.Slice(each, 0, batch) for each in (best, index))
    return best, body.Where(body.Greater(best, -math.inf), index, 0)


def box_candidates_body(*, opset: int) -> onnx.FunctionProto:
    """Function for ``BoxCandidates``, see :func:`carafe_deploy.ops.box_candidates`.

    Args:
        opset: version of the standard operators, 18 or later.
    """
    body = BodyWriter()
    batch, count, columns = body.dims("logits", 3)
    classes = body.Sub(columns, 1)
    probabilities = body.Softmax(body.Cast("logits", to=FLOAT), axis=2)
    scores = body.Transpose(body.Slice(probabilities, 0, classes, 2), perm=[0, 2, 1])
    deltas = body.Cast(body.reshape("deltas", batch, count, classes, 4), to=FLOAT)
    boxes = _decode(body, body.Unsqueeze("proposals", 1), body.Transpose(deltas, perm=[0, 2, 1, 3]))
    held = body.Less(body.arange(count), body.Cast("num_proposals", to=INT64))  # [B, P]
    held = body.Unsqueeze(held, 1)
    body.Where(body.Unsqueeze(held, 3), boxes, 0.0, out="boxes")
    body.Where(held, scores, -math.inf, out="scores")
    return body.function(BOX_CANDIDATES, opset=opset)


def _decode(body: BodyWriter, boxes: str, deltas: str) -> str:
    """Boxes and deltas of four axes, [B, ..., 4] -> boxes inside the images."""
    means, stds = body.Split("normalization", axis=0, num_outputs=2, out=2)  # [1, 4]
    real = body.Add(body.Mul(deltas, stds), means)
    shift, log_ratio = body.Split(real, axis=3, num_outputs=2, out=2)
    low, high = body.Split(boxes, axis=3, num_outputs=2, out=2)
    size = body.Sub(high, low)
    center = body.Add(body.Mul(body.Add(low, high), 0.5), body.Mul(size, shift))
    ratio = body.Clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    half = body.Mul(body.Mul(size, body.Exp(ratio)), 0.5)
    limit = body.Unsqueeze(body.Gather("image_sizes", [1, 0], axis=1), [1, 2])  # [B, 1, 1, 2]
    corners = (
        body.Min(body.Max(corner, 0.0), limit)
        for corner in (body.Sub(center, half), body.Add(center, half))
    )
    name: str = body.Concat(*corners, axis=3)
    return name

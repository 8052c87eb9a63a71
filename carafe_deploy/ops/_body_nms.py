"""ONNX function body of BatchedNms."""

from __future__ import annotations

import math

import onnx

from carafe_deploy.operators.nms import BATCHED_NMS
from carafe_deploy.ops.body_writer import INT32, BodyWriter

__all__ = ["batched_nms_body"]


def batched_nms_body(*, opset: int) -> onnx.FunctionProto:
    """Function for ``BatchedNms(boxes, scores)``; the node's attributes are taken at run time.

    NonMaxSuppression runs with one label of one image a batch entry and its limit at the number of
    candidates, so it caps nothing. What it keeps is scattered back to [B, L*M], and one TopK ranks
    all labels; ONNX defines that equal scores rank by lower index.

    A NaN score is never selected. A NaN coordinate makes no box of NonMaxSuppression: what such a
    candidate keeps or suppresses is the runtime's (ONNX Runtime: nothing is suppressed by it).

    Args:
        opset: version of the standard operators, 18 or later.

    Returns:
        Function with inputs [B, L, M, 4] and [B, L, M], both float32, and outputs num_dets [B, 1]
        int32 and indices [B, max_output] int64 into L*M, padded with -1.
    """
    body = BodyWriter()
    max_output = body.given("max_output")
    batch, labels, per_label = body.dims("scores", 3)
    groups = body.Mul(batch, labels)
    # The operator's corners are (y, x); IoU is the same with the axes swapped.
    boxes = body.reshape("boxes", groups, per_label, 4)
    scores = body.reshape("scores", groups, 1, per_label)
    selected = body.NonMaxSuppression(
        boxes,
        scores,
        per_label,
        body.given_float("iou_threshold"),
        body.given_float("score_threshold"),
    )  # [kept, 3]: batch entry, class 0, candidate
    group, _, candidate = body.Split(selected, axis=1, num_outputs=3, out=3)
    index = body.Squeeze(body.Add(body.Mul(group, per_label), candidate), 1)

    total = body.Mul(groups, per_label)
    flat = body.reshape("scores", total)
    kept = body.ScatterElements(body.Expand(-math.inf, total), index, body.Gather(flat, index))
    kept = body.reshape(kept, batch, body.Mul(labels, per_label))
    # L*M may be less than max_output; and without a row TopK ends the process (ONNX Runtime 1.30).
    lacking = body.Sub(body.Max(batch, 1), batch)
    kept = body.Pad(kept, body.Concat([0, 0], lacking, max_output, axis=0), -math.inf)
    best, index = body.TopK(kept, max_output, out=2)
    valid = body.Greater(best, -math.inf)
    index = body.Where(valid, index, -1)
    count = body.ReduceSum(body.Cast(valid, to=INT32), 1)
    body.Slice(count, 0, batch, out="num_dets")
    body.Slice(index, 0, batch, out="indices")
    return body.function(BATCHED_NMS, opset=opset)

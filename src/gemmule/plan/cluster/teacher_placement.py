"""Where a teacher computes: on the student's devices, on devices of its own, or once, recorded.

A teacher's forward pass costs the same device time wherever it runs. The placements differ in what
it takes besides: next to the student its weights need memory, which may force a slower layout of
the student; on devices of its own its final hidden states are sent to the student's, which keep its
head (its logits would be vocabulary / width times as many bytes); recorded targets need disk, and
every further student learns from them without a teacher.
"""

from typing import Any

from gemmule.plan.cluster.choice import Estimate, choose, estimate
from gemmule.plan.cluster.devices import Cluster
from gemmule.plan.cluster.shapes import Shape

STORED_BYTES = 56.0  # per token: 50 systematic draws from 256,000 ids, as stored
NEXT_TO, APART, RECORDED = "next to the student", "on devices of its own", "recorded"


def placements(
    best: Estimate,
    shape: Shape,
    teacher: Shape,
    cluster: Cluster,
    sequences: int,
    seq_len: int,
    dtype: str,
    tokens: int,
) -> dict[str, Any]:
    """Device-hours of a run with a teacher, by where the teacher computes.

    Args:
        best: the best layout with the teacher next to the student.
        shape: the student.
        teacher: the teacher.
        cluster: all devices.
        sequences: sequences per optimizer step.
        seq_len: tokens per sequence.
        dtype: data type of the matrix products.
        tokens: training tokens.

    Returns:
        JSON-able: "each", for each placement its name, device-hours of the first run and of each
        further student, and bytes it sends or stores per token; "cheapest", of one run; "teacher
        devices per student device", for devices of its own to keep up with; "recording pays from",
        the number of students from which the record is the cheapest.
    """
    hours = tokens / 3600  # per device-second of a token
    alone = 1 / choose(shape, cluster, sequences, seq_len, dtype)[0].tokens
    forward = 1 / best.tokens - 1 / estimate(shape, cluster, best.layout, seq_len).tokens
    first = {NEXT_TO: 1 / best.tokens, APART: alone + forward, RECORDED: alone + forward}
    further = {**first, RECORDED: alone}
    moved = {NEXT_TO: 0.0, APART: 2.0 * teacher.width, RECORDED: STORED_BYTES}
    least = min(first[NEXT_TO], first[APART])
    return {
        "each": [
            {
                "name": name,
                "device_hours": first[name] * hours,
                "device_hours_further": further[name] * hours,
                "bytes_per_token": moved[name],
            }
            for name in (NEXT_TO, APART, RECORDED)
        ],
        "cheapest": NEXT_TO if first[NEXT_TO] == least else APART,
        "teacher_devices_per_student_device": forward / alone,
        "recording_pays_from": max(2, int(forward / (least - alone)) + 1),
    }

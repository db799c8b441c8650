"""Checks our TensorBoard event files with TensorBoard's own code.

    python tensorboard_events.py                 # the bytes pinned in src/directory/event_file.rs
    python tensorboard_events.py RUN_DIRECTORY   # its event file against its metrics.jsonl

Needs the Python package `tensorboard`.
"""

import io
import json
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter


def pinned_bytes():
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    writer.write(event_pb2.Event(wall_time=1.5, file_version="brain.Event:2").SerializeToString())
    values = [("loss", 0.5), ("rewards/margins", -1.25)]
    summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=t, simple_value=v) for t, v in values])
    writer.write(event_pb2.Event(wall_time=2.5, step=300, summary=summary).SerializeToString())
    return buffer.getvalue().hex()


def check(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    expected = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                expected.setdefault(name, []).append((row["step"], struct.unpack("f", struct.pack("f", value))[0]))
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == expected, (found, expected)
    print(f"{len(found)} curves, {sum(map(len, found.values()))} numbers agree")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(pinned_bytes())
    else:
        check(pathlib.Path(sys.argv[1]))

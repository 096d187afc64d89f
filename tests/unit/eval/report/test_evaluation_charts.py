"""What the report shows of scores during training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eval.in_training.record import Record, Recorder, read_records
from eval.report.evaluation_charts import evaluation_facts
from eval.report.history import History
from eval.report.training_charts import training_charts
from eval.results import Failure, Result, Sample


def record(step: int, accuracy: float) -> Record:
    results = [
        Result(
            "benchmark/copa/acc", accuracy, accuracy - 0.1, accuracy + 0.1, 60, "accuracy", True, "Wilson", chance=0.5
        ),
        Result("perplexity/zh/bits_per_byte", 3.0, 2.9, 3.1, 4, "bits per byte", False, "bootstrap"),
        Result("perplexity/zh/perplexity", 30.0, 29.0, 31.0, 4, "perplexity per token", False, "bootstrap"),
        Result("compression/zh/gzip_bits_per_byte", 2.5, 2.5, 2.5, 4, "bits per byte", False, "exact"),
        Result(
            "aggregate/core/centred_accuracy", 2 * accuracy - 1, -0.1, 0.2, 60, "centred accuracy", True, "", chance=0.0
        ),
    ]
    samples = [Sample("prompt", "Prompt 1", "Once", f"<b>at {step}", "greedy")]
    failures = [Failure("chat/sums", "gone")] if step == 20 else []
    return Record(step, 1.5, results, samples, failures, ["translation/wmt"], {"chance": "none of the scores"})


def test_a_chart_for_each_score_with_interval_chance_and_program() -> None:
    facts = evaluation_facts([record(step, 0.5 + step / 100) for step in (10, 20, 30)])
    assert facts is not None
    titles = [chart["title"] for chart in facts["charts"]]
    assert titles == [
        "aggregate/core/centred_accuracy (n = 60)",
        "benchmark/copa/acc (n = 60)",
        "perplexity/zh/bits_per_byte (n = 4)",
    ]
    assert [[line.label for line in chart["legend"]] for chart in facts["charts"][1:]] == [
        ["score", "guessing"],
        ["score", "gzip -9"],
    ]
    assert facts["charts"][1]["svg"].count("polyline") == 4, "the score, two ends of its interval, and chance"
    assert facts["remarks"] == ["After step 30: none of the scores."]
    assert facts["failures"] == ["Step 20: chat/sums: gone"] and facts["unfinished"] == ["translation/wmt"]
    assert [one["step"] for one in facts["texts"]] == [10, 20, 30] and "4.5 s" in facts["about"]
    assert evaluation_facts([]) is None


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0)
    written = [record(step, 0.6) for step in (10, 20)]
    for one in written:
        recorder.add(one)
    recorder.close()
    assert list(read_records(tmp_path)) == written
    Recorder(tmp_path, 10).close()
    assert [one.step for one in read_records(tmp_path)] == [10]
    file = tmp_path / "evaluations.jsonl"
    file.write_text(json.dumps({"step": 10, "results": []}) + "\n")
    with pytest.raises(ValueError, match=r"evaluations.jsonl: step 10 is damaged"):
        list(read_records(tmp_path))


def test_sources_of_the_validation_split_share_a_chart() -> None:
    names = [f"val/bits_per_byte/{name}" for name in "abcdefgh"]
    charts = training_charts(History({name: [(1.0, 2.0), (2.0, 1.5)] for name in names}))
    assert [chart["title"] for chart in charts] == ["Bits per byte of each source, validation"] * 2
    assert [line.label for chart in charts for line in chart["legend"]] == list("abcdefgh")


def test_a_share_ends_at_one_and_a_blip_looks_small() -> None:
    history = History({"train/reward": [(1.0, 0.5)], "train/stop_rate": [(1.0, 1.0), (2.0, 0.996), (3.0, 1.0)]})
    (chart,) = [chart for chart in training_charts(history) if chart["title"] == "Share of answers that end"]
    ticks = re.findall(r">([\d.]+)%</text>", chart["svg"])
    assert max(map(float, ticks)) == 100 and min(map(float, ticks)) <= 92.5

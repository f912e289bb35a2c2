"""TensorBoard reads what a run shows: numbers, samples, settings."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lsemrl.modules.metrics_log import MetricsLog


def test_numbers_texts_and_settings_are_read_by_tensorboard(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path), events=True)
    log.log_hyperparams({"model.lr": 0.5, "model.names": ["chrf"], "data.path": "a"})
    log.log_metrics({"reward": 0.25}, 3)
    log.log_text("samples", "| completion |\n|---|\n| ང་ཆུ་འཐུང་། |", 3)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    found = EventAccumulator(str(path))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("reward")] == [(3, 0.25)]
    (text,) = found.Tensors("samples/text_summary")
    assert "ང་ཆུ་འཐུང་།" in text.tensor_proto.string_val[0].decode() and text.step == 3
    settings = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert all(part in settings for part in (b"model.lr", b'["chrf"]', b"data.path"))
    assert found.summary_metadata["samples/text_summary"].plugin_data.plugin_name == "text"

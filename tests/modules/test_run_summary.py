"""What a run came to, for whoever started it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from lsemrl.modules.best import Best
from lsemrl.modules.run_summary import predict_command, run_summary


def test_where_everything_is_the_score_first_and_last_and_what_is_next(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "metrics.csv").write_text("reward,step,val/chrf\n1.0,0,\n,1,.25\n1.5,1,\n,2,.5\n")
    place, metric, reward, next_ = run_summary(tmp_path, "val/chrf", "micro", "rollout step")
    assert next(islice(run_summary(tmp_path, "val/chrf", "micro", "step"), 1, None)) == metric.replace("rollout ", "")
    assert place.startswith(f"done: {tmp_path} holds adapter (") and "best" not in place and "samples" not in place
    assert metric == "val/chrf: 0.25 after 2 rollout steps, 0.5 after 3"
    assert reward == "reward: 1 after 1 rollout steps, 1.5 after 2"
    assert next_.startswith(f"next: lsemrl chat {tmp_path}")


def test_the_best_is_told_where_it_is_not_the_last(tmp_path: Path) -> None:
    for name in ("adapter", "best"):
        (tmp_path / name).mkdir()
    (tmp_path / "metrics.csv").write_text("step,val/chrf\n1,.5\n2,.6\n3,nan\n4,.6\n5,.3\n")
    Best(metric="val/chrf", mode="max", value=0.6, step=3).write(tmp_path / "best")
    place, metric, best, next_ = run_summary(tmp_path, "val/chrf", "micro", "rollout step")
    assert "best (the adapter that did best by val/chrf)" in place
    assert metric == "val/chrf: 0.5 after 2 rollout steps, 0.3 after 6"
    assert best == "best val/chrf: 0.6 after 3 rollout steps, which best/ holds; adapter/ is of the last step"
    assert next_.startswith(f"next: lsemrl chat {tmp_path}/best, ")
    assert next_.endswith(f"--policy.adapter {tmp_path}/best")
    Best(metric="val/chrf", mode="min", value=0.3, step=6).write(tmp_path / "best")
    _, _, next_ = run_summary(tmp_path, "val/chrf", "micro", "rollout step")
    assert next_.endswith(f"--policy.adapter {tmp_path}/adapter")


def test_the_best_is_what_lies_there_whatever_is_watched_by_now(tmp_path: Path) -> None:
    """A run may be gone on with by another metric, or by none, and end before it is measured."""
    for name in ("adapter", "best"):
        (tmp_path / name).mkdir()
    (tmp_path / "metrics.csv").write_text("step,val/chrf,val/bleu\n1,.5,7\n5,.3,9\n")
    place, _, next_ = run_summary(tmp_path, "val/bleu", "micro", "rollout step")
    assert "best (the adapter that did best by a metric of validation)" in place
    assert next_.endswith(f"--policy.adapter {tmp_path}/adapter")
    Best(metric="val/chrf", mode="max", value=0.5, step=2).write(tmp_path / "best")
    place, _, best, next_ = run_summary(tmp_path, "val/bleu", "micro", "rollout step")
    assert "best (the adapter that did best by val/chrf)" in place
    assert best == "best val/chrf: 0.5 after 2 rollout steps, which best/ holds; adapter/ is of the last step"
    assert next_.endswith(f"--policy.adapter {tmp_path}/best")


def test_what_was_not_measured_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    assert len(list(run_summary(tmp_path, "val/chrf", "micro", "rollout step"))) == 2


def test_an_adapter_is_not_scaled_again(tmp_path: Path) -> None:
    """Of a run that began with half an adapter: what it left is whole, and its configuration says half still."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "metrics.csv").write_text("step,loss\n1,.5\n")
    command = f"predict --config {tmp_path}/config.yaml --model.policy.adapter {tmp_path}/adapter"
    for began, scale in ((1.0, ""), (0.5, " --model.policy.adapter_scale 1")):
        *_, next_ = run_summary(tmp_path, None, "micro", "step", by_rows=True, adapter_scale=began)
        assert next_.startswith(f"next: lsemrl {command}{scale}, or ")
    again = predict_command(tmp_path, tmp_path / "adapter", whole=False, scales=(0.5, 0.5))
    assert again == command
    model = predict_command(tmp_path, tmp_path / "best", whole=True, scales=(1.0, 1.0))
    assert model == f"predict --config {tmp_path}/config.yaml --model.policy.model {tmp_path}/best"


def test_a_model_that_was_trained_whole_is_no_adapter(tmp_path: Path) -> None:
    for name in ("adapter", "best"):
        (tmp_path / name).mkdir()
    (tmp_path / "adapter" / "config.json").touch()
    place, next_ = run_summary(tmp_path, None, "my base", "rollout step")
    assert "holds adapter (the model, for plain transformers too), best (the model that did best by" in place
    assert next_.endswith(f"measure with --policy.train full --policy.model {tmp_path}/adapter --base 'my base'")

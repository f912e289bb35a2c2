"""The judge: what it asks, what it reads in answers, and what it makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_server import Answer, ChatServer, candidates, completion, failure, longer
from lsemrl.cli.main import main
from lsemrl.errors import UserError
from lsemrl.judging.client import Endpoint, ReplyCache
from lsemrl.judging.comparison import Judgement, Pair, wilson
from lsemrl.judging.judge import PROMPT, judge_by_endpoint, judge_by_oracle, read_answer

REFERENCE = "དགེ་རྒན་གྱིས་ཁྲོམ་ལ་དེབ་ཉོས།"  # a teacher bought a book at the market
SAME = "ཁྲོམ་ར་ནས་དགེ་རྒན་གྱིས་དཔེ་ཆ་ཞིག་ཉོས་སོང་།"  # in other words
APPLE = "དགེ་རྒན་གྱིས་ཁྲོམ་ལ་ཀུ་ཤུ་ཉོས།"  # an apple
LESS = "དགེ་རྒན་གྱིས་དེབ་ཉོས།"  # not said where


def pair(one: str, other: str, id_: str = "1", references: tuple[str, ...] = (REFERENCE,)) -> Pair:
    return Pair(id=id_, source="老师在市场买了书。", outputs=(one, other), references=references)


def judge(behaviour: Callable[[int, str], Answer], pairs: list[Pair], cache: Path, **settings: Any) -> list[Judgement]:
    with ChatServer(behaviour) as server:
        endpoint = Endpoint(base_url=server.base_url, model="m", backoff=0.001, attempts=3)
        settings = {"task": "translation", "language": "bo"} | settings
        return judge_by_endpoint(pairs, endpoint, ReplyCache(cache), **settings)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Verdict: A", "A"),
        ("Verdict: B", "B"),
        ("Verdict: tie", "tie"),
        ("A", "A"),
        ("b", "B"),
        ("TIE", "tie"),
        (" **A** \n", "A"),
        ("**Verdict:** B", "B"),
        ("**Verdict: A**.", "A"),
        ("### Verdict\nB", "B"),
        ("Verdict：A", "A"),
        ("[[B]]", "B"),
        (r"\boxed{A}", "A"),
        (r"Final answer: $\boxed{B}$", "B"),
        ('{"verdict": "A"}', "A"),
        ('{\n  "reason": "both lack the place",\n  "verdict": "tie",\n  "sure": true\n}', "tie"),
        ("```json\n{'verdict': 'B'}\n```", "B"),
        ("Candidate A", "A"),
        ("Candidate_B.", "B"),
        ("The winner is candidate B.", "B"),
        ("Verdict: a tie", "tie"),
        ("A. It is the only one in Tibetan.", "A"),
        ("B - the other leaves out the place", "B"),
        ("Verdict: A, because B is in Chinese", "A"),
        ("Candidate A is longer.\nCandidate B is better.\nVerdict: B", "B"),
        ("A: right in meaning\nB: wrong place\nVerdict: A", "A"),
        ("Verdict: A\nOn second thought:\nVerdict: B", "B"),
        ("Verdict: A\n\n(My first choice: B, but it leaves out the place.)", "A"),
        ("<think>Verdict: A</think>\n\nVerdict: B", "B"),
        ("A would do...</think>B", "B"),
        ("", None),
        ("   \n", None),
        ("<think>Verdict: A", None),
        ("<think>A</think>", None),
        ("A is better than B", None),
        ("A and B are equal", None),
        ("A, B", None),
        ("Verdict: A or B", None),
        ("Verdict: A, B", None),
        ("Verdict: A>B", None),
        ("A: right in meaning\nB: wrong place", None),
        ("A.\nB.", None),
        ("A - the text is in the wrong language.\nTherefore B is better.", None),
        ("B (wrong place)\nI prefer candidate A.", None),
        ("A\n\nis in Chinese, so the better is B", None),
        ("Tie - no. B is better", None),
        ("B\nIt is in Tibetan, where A is not.", None),  # asked again
        ("B\nCandidate B is in Tibetan.", "B"),
        ("I cannot decide.", None),
        ("Verdict: C", None),
        ("Verdict: Apple", None),
        ("Answer: both", None),
        ("A_B", None),
        ("དགེ་རྒན", None),
        ("Verdict:\ufffd", None),
    ],
)
def test_what_is_read_in_a_reply(reply: str, answer: str | None) -> None:
    assert read_answer(reply) == answer


@given(st.text())
def test_any_reply_can_be_read(reply: str) -> None:
    assert read_answer(reply) in ("A", "B", "tie", None)
    assert read_answer(f"{reply}</think>\nVerdict: B") == "B"


@pytest.mark.parametrize(
    "reply", [" " * 200_000, "*" * 200_000, "answer " * 30_000, "<think>" * 30_000, "A\n" * 99_999]
)
def test_long_replies_are_read_in_no_time(reply: str) -> None:
    assert read_answer(reply) == ("A" if "A" in reply else None)  # would take hours if it were not linear


def test_both_orders_are_asked_and_counted_for_the_right_arm(tmp_path: Path) -> None:
    pairs = [pair("long output", "short", "1"), pair("x", "longer", "2"), pair("ab", "cd", "3")]
    prompts: list[str] = []

    def behaviour(number: int, prompt: str) -> Answer:
        prompts.append(prompt)
        return longer(prompt)

    judgements = judge(behaviour, pairs, tmp_path)
    assert [(judgement.outcome, judgement.answers) for judgement in judgements] == [
        ("win", ("A", "B")),
        ("loss", ("B", "A")),
        ("tie", ("tie", "tie")),
    ]
    both = [each.outputs for each in pairs]
    assert sorted(map(candidates, prompts)) == sorted([*both, *(outputs[::-1] for outputs in both)])


def test_a_judge_that_always_names_the_first_has_no_preference(tmp_path: Path) -> None:
    judgements = judge(lambda number, prompt: completion("A"), [pair("x", "y"), pair("y", "z", "2")], tmp_path)
    assert [judgement.outcome for judgement in judgements] == ["tie", "tie"]
    assert {judgement.note for judgement in judgements} == {"the orders disagree"}


def test_half_a_tie_is_a_tie(tmp_path: Path) -> None:
    def behaviour(number: int, prompt: str) -> Answer:
        return completion("tie" if candidates(prompt)[0] == "x" else "A")

    (judgement,) = judge(behaviour, [pair("x", "y")], tmp_path)
    assert (judgement.outcome, judgement.answers, judgement.note) == ("tie", ("tie", "A"), "the orders disagree")


def test_equal_outputs_are_a_tie_without_asking(tmp_path: Path) -> None:
    with_none = judge(lambda number, prompt: failure(401), [pair("x", "x")], tmp_path / "a")
    assert with_none == [Judgement(outcome="tie", note="equal outputs")]
    mixed = judge(
        lambda number, prompt: longer(prompt), [pair("x", "x"), pair("xx", "x"), pair("", "")], tmp_path / "b"
    )
    assert [judgement.outcome for judgement in mixed] == ["tie", "win", "tie"]


def test_a_row_without_a_verdict_is_invalid(tmp_path: Path) -> None:
    def behaviour(number: int, prompt: str) -> Answer:
        asked.append(prompt)
        first, second = candidates(prompt)
        if "refused" in (first, second):
            return failure(400, "filtered")
        # The limit fell into its thoughts, where every form of a verdict stands.
        return completion("Hm. Verdict: B is one form.\nVerdict: B", "length") if first == "x" else longer(prompt)

    asked: list[str] = []
    rows = [pair("x", "yy"), pair("zz", "y", "2"), pair("refused", "y", "3")]
    invalid, win, refused = judge(behaviour, rows, tmp_path, invalid_retries=1)
    assert invalid == Judgement(
        outcome="invalid",
        answers=(None, "A"),
        replies=("Hm. Verdict: B is one form.\nVerdict: B", "Verdict: A"),
        note="the reply was cut",
        cut=True,
    )
    assert sum(candidates(prompt)[0] == "x" for prompt in asked) == 2  # asked again once
    assert win.outcome == "win"
    assert refused.outcome == "invalid" and "answers 400 (filtered)" in refused.note


def test_texts_are_put_in_as_they_are(tmp_path: Path) -> None:
    def behaviour(number: int, prompt: str) -> Answer:
        asked.append(prompt)
        return completion("tie")

    asked: list[str] = []
    judge(behaviour, [pair("{second} \\1 {source}", "{0} {first}")], tmp_path / "a")
    assert {candidates(prompt) for prompt in asked} == {
        ("{second} \\1 {source}", "{0} {first}"),
        ("{0} {first}", "{second} \\1 {source}"),
    }
    assert "a translation of the source into Tibetan" in asked[0] and "natural Tibetan" in asked[0]
    assert "<source>\n老师在市场买了书。\n</source>" in asked[0]
    asked.clear()
    template = '{"s": "{source}"} {first}|{second} {task} {odd}'
    judge(behaviour, [pair("x", "y")], tmp_path / "b", template=template, task="headline", language="ug")
    assert sorted(asked) == [
        f'{{"s": "老师在市场买了书。"}} {texts} a headline in Uyghur for the source {{odd}}' for texts in ("x|y", "y|x")
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"template": "{source} {first}"}, r"the prompt has no \{second\}"),
        ({"invalid_retries": -1}, "invalid_retries is -1"),
        ({"language": "xx"}, "language is 'xx', which is no code of a language"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        judge(lambda number, prompt: completion("A"), [pair("x", "y")], tmp_path, **settings)


def test_the_oracle_prefers_the_nearer_meaning() -> None:
    pairs = [pair(SAME, APPLE), pair(APPLE, LESS), pair(SAME, REFERENCE), pair("", "书")]
    assert [judgement.outcome for judgement in judge_by_oracle(pairs)] == ["win", "loss", "tie", "tie"]
    turned = [pair(*each.outputs[::-1]) for each in pairs]
    assert [judgement.outcome for judgement in judge_by_oracle(turned)] == ["loss", "win", "tie", "tie"]


def test_the_oracle_needs_a_reference_that_it_can_read() -> None:
    with pytest.raises(UserError, match="the row '1' has no references for the oracle"):
        judge_by_oracle([pair("x", "y", references=())])
    with pytest.raises(UserError, match="the row '1': the oracle knows only the embedded world"):
        judge_by_oracle([pair("x", "y", references=("བཀྲ་ཤིས་བདེ་ལེགས།",))])


def write(path: Path, *outputs: str, start: int = 0, **more: Any) -> Path:
    rows = [
        {"id": str(at), "source": f"源{at}", "output": output, "references": [REFERENCE], **more}
        for at, output in enumerate(outputs, start=start)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["judge", *words])
    assert exit_.value.code == code
    return capsys.readouterr().err.splitlines()[-1]


def test_the_verb_with_an_endpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Two wins, one loss, one tie, one equal, one invalid; one row only in the first file, two only in the second.
    first = write(tmp_path / "a", "only", "xxx", "xxx", "x", "xx", "same", "mute")
    second = write(tmp_path / "b", "yy", "y", "yy", "yy", "same", "silent", "only", "only", start=1)

    def behaviour(number: int, prompt: str) -> Answer:
        return completion("...") if candidates(prompt)[0] == "mute" else longer(prompt)

    output = tmp_path / "out"
    with ChatServer(behaviour) as server:
        words = [
            f"rl={first}",
            f"sft={second}",
            f"--endpoint.base_url={server.base_url}",
            "--endpoint.model=m",
            "--language=bo",
        ]
        words += ["--invalid_retries=0", f"--output={output}"]
        main(["judge", *words])
        shown = capsys.readouterr().out
        asked = len(server.requests)
        assert asked == 10
        before = (output / "judge.json").read_text(encoding="utf-8"), (output / "verdicts.jsonl").read_text("utf-8")
        main(["judge", *words])
        after = (output / "judge.json").read_text(encoding="utf-8"), (output / "verdicts.jsonl").read_text("utf-8")
        assert before == after
        assert len(server.requests) == asked
        main(["judge", *words, "--endpoint.concurrency=2"])
        for other in (["--endpoint.model=another"], ["--language=zh"]):
            with pytest.raises(SystemExit):
                main(["judge", *words, *other])
            assert "which holds another judge's verdict; name another folder" in capsys.readouterr().err
        assert len(server.requests) == asked
    result = json.loads(before[0])
    counts = ("rows", "only_in_first", "only_in_second", "wins", "losses", "ties", "invalid", "asked", "disagreements")
    assert [result[name] for name in counts] == [6, 1, 2, 2, 1, 2, 1, 5, 0]
    assert result["shares"] == {"win": 0.4, "tie": 0.4, "loss": 0.2}
    assert result["win_rate"] == pytest.approx(2 / 3)
    assert result["win_rate_interval"] == pytest.approx(wilson(2, 3))
    assert result["first_place_rate"] == 0.5
    assert result["judge"]["template"] == PROMPT and result["judge"]["template_by"] == "lsemrl"
    rows = [json.loads(line) for line in before[1].splitlines()]
    assert [row["outcome"] for row in rows] == ["win", "win", "loss", "tie", "tie", "invalid"]
    assert [row["winner"] for row in rows] == ["rl", "rl", "sft", None, None, None]
    assert rows[0]["outputs"] == {"rl": "xxx", "sft": "yy"}
    assert rows[0]["replies"] == ["Verdict: A", "Verdict: B"]
    for part in ("40.0% (2)", "20.0% (1)", "66.7%", "only in rl's 1", "only in sft's 2; 1 invalid"):
        assert part in shown


def test_the_verb_with_the_oracle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write(tmp_path / "a", SAME, APPLE, SAME), write(tmp_path / "b", APPLE, LESS, REFERENCE)
    main(["judge", f"rl={first}", f"sft={second}", "--oracle", f"--output={tmp_path / 'out'}"])
    result = json.loads((tmp_path / "out" / "judge.json").read_text(encoding="utf-8"))
    assert (result["wins"], result["losses"], result["ties"], result["invalid"]) == (1, 1, 1, 0)
    assert result["judge"] == {"kind": "oracle"}
    assert result["first_place_rate"] is None
    assert "33.3% (1)" in capsys.readouterr().out
    assert not (tmp_path / "out" / "cache").exists()
    words = ["--oracle", f"--output={tmp_path / 'out'}"]
    monkeypatch.chdir(first.parent)
    main(["judge", f"rl={first.name}", f"sft={second.name}", *words])  # again, for the same verdict
    with pytest.raises(SystemExit):
        main(["judge", f"rl={second}", f"sft={second}", *words])
    assert "which holds a verdict on" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "judge.json").read_text())["files"] == ["../a", "../b"]


def test_the_verb_with_a_prompt_of_ones_own(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", "x"), write(tmp_path / "b", "y")
    (tmp_path / "prompt.txt").write_text("{source}: {first} or {second}?", encoding="utf-8")
    with ChatServer(lambda number, prompt: completion("tie")) as server:
        words = [
            f"--endpoint.base_url={server.base_url}",
            "--endpoint.model=m",
            "--language=bo",
            f"--prompt={tmp_path / 'prompt.txt'}",
        ]
        main(["judge", f"a={first}", f"b={second}", *words, f"--output={tmp_path}", f"--cache={tmp_path / 'replies'}"])
    prompts = {body["messages"][0]["content"] for _, _, body in server.requests}
    assert prompts == {"源0: x or y?", "源0: y or x?"}
    assert len(list((tmp_path / "replies").iterdir())) == 2
    assert json.loads((tmp_path / "judge.json").read_text("utf-8"))["judge"]["template_by"].endswith("prompt.txt")


def test_the_verb_stopped_by_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("lsemrl.judging.judge.converse", stop)
    first, second = write(tmp_path / "a", "x"), write(tmp_path / "b", "y")
    words = [
        f"a={first}",
        f"b={second}",
        "--endpoint.base_url=http://127.0.0.1:9/v1",
        "--endpoint.model=m",
        "--language=bo",
    ]
    said = told(capsys, *words, f"--output={tmp_path / 'out'}", code=130)
    assert said == "lsemrl: stopped; replies so far are kept, and the same command goes on from there"


def test_mistakes_are_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = f"a={write(tmp_path / 'a', 'x')}", f"b={write(tmp_path / 'b', 'y')}"
    other = f"b={write(tmp_path / 'c', 'y', start=9)}"
    endpoint = ["--endpoint.base_url=http://127.0.0.1:9/v1", "--endpoint.model=m", "--language=bo"]
    output = f"--output={tmp_path / 'out'}"
    assert "choose one judge: --oracle, or --endpoint.base_url" in told(capsys, first, second)
    assert "choose one judge" in told(capsys, first, second, "--oracle", *endpoint)
    assert "--language is not given; name that which" in told(capsys, first, second, *endpoint[:2])
    assert "--language is 'bo', which the oracle does not ask for" in told(
        capsys, first, second, "--oracle", endpoint[2]
    )
    assert "--prompt is 'p', which the oracle" in told(capsys, first, second, "--oracle", "--prompt=p")
    assert "1 arms are given, and two are compared" in told(capsys, first, "--oracle")
    assert "an arm is given as 'file.jsonl'; write NAME=" in told(capsys, first, "file.jsonl", "--oracle")
    assert "an arm is given as '../b=f'" in told(capsys, first, "../b=f", "--oracle")
    assert "both arms are named 'a'" in told(capsys, first, first, "--oracle")
    assert "gone.jsonl cannot be read (No such file" in told(capsys, first, f"b={tmp_path / 'gone.jsonl'}", "--oracle")
    assert "the two files have no id in common" in told(capsys, first, other, "--oracle")
    assert "endpoint.base_url is 'here'" in told(
        capsys, first, second, "--endpoint.base_url=here", "--endpoint.model=m", "--language=bo"
    )
    assert "model; lsemrl judge --help lists every option" in told(capsys, first, second, endpoint[0])
    assert "--prompt is '" in told(capsys, first, second, *endpoint, output, f"--prompt={tmp_path / 'none'}")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in told(capsys, first, second, "--oracle", f"--output={tmp_path / 'file' / 'out'}")
    with ChatServer(lambda number, prompt: failure(401)) as server:
        words = [f"--endpoint.base_url={server.base_url}", "--endpoint.model=m", "--language=bo", output]
        assert "no API key was sent: put one in the environment variable OPENAI_API_KEY" in told(
            capsys, first, second, *words
        )

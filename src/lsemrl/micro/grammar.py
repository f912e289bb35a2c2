"""The embedded world's grammar: events, and the Chinese and Tibetan sentences that say them.

An event is nine slots. Chinese says it in one of two word orders; Tibetan in many: synonyms, three locative
particles, an optional indefinite article, optional auxiliaries, and free order before the object. The vocabulary
and the sandhi rules are real; the world is small so that meaning can be checked exactly (see `oracle`).
Nothing here needs more than the standard library.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

TSHEG, SHAD = "་", "།"
Split = Literal["pretrain", "train", "validation", "test"]


@dataclass(frozen=True)
class Event:
    """One happening. A slot holds the Chinese word of its concept, or None where it is empty.

    Example:
        `Event(agent="老师", action="买", patient="书", place="市场")`: the teacher bought books at the market.
    """

    agent: str
    action: str
    patient: str
    agent_attribute: str | None = None
    patient_attribute: str | None = None
    count: str | None = None
    place: str | None = None
    time: str | None = None
    negation: str | None = None

    def filled(self) -> dict[str, str]:
        """The filled slots, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def core(self) -> Event:
        """What a headline keeps: who, did or did not, what, where."""
        return replace(self, agent_attribute=None, patient_attribute=None, count=None, time=None)

    def split(self) -> Split:
        """The one data split this event may appear in, from a hash of its content."""
        digest = hashlib.blake2b(repr(sorted(self.filled().items())).encode(), digest_size=8).digest()
        bucket = int.from_bytes(digest) % 100
        return "pretrain" if bucket < 50 else "train" if bucket < 90 else "validation" if bucket < 95 else "test"


# Chinese word -> its Tibetan words. Every table is one slot of the event.
AGENTS: dict[str, tuple[str, ...]] = {
    "老师": ("དགེ་རྒན",),
    "学生": ("སློབ་མ", "སློབ་ཕྲུག"),
    "农民": ("ཞིང་པ",),
    "牧民": ("འབྲོག་པ",),
    "医生": ("སྨན་པ", "ཨེམ་ཆི"),
    "妈妈": ("ཨ་མ",),
    "爸爸": ("ཨ་ཕ",),
    "姐姐": ("ཨ་ཅེ",),
    "哥哥": ("ཨ་ཇོ", "ཇོ་ཇོ"),
    "朋友": ("གྲོགས་པོ",),
    "孩子": ("ཕྲུ་གུ", "བྱིས་པ"),
    "司机": ("ཁ་ལོ་པ",),
    "喇嘛": ("བླ་མ",),
    "僧人": ("གྲྭ་པ",),
    "警察": ("ཉེན་རྟོག་པ",),
    "工人": ("བཟོ་པ",),
    "作家": ("རྩོམ་པ་པོ",),
    "画家": ("རི་མོ་མཁན",),
    "商人": ("ཚོང་པ",),
    "记者": ("གསར་འགོད་པ",),
    "爷爷": ("ཨ་མྱེས", "སྤོ་བོ"),
    "奶奶": ("རྨོ་མོ", "ཨ་ཡེ"),
    "厨师": ("མ་བྱན",),
    "士兵": ("དམག་མི",),
    "歌手": ("གཞས་མཁན",),
    "猎人": ("རྔོན་པ",),
}
AGENT_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "年轻": ("གཞོན་པ", "གཞོན་ནུ"),
    "年老": ("རྒན་པ",),
    "勤劳": ("བརྩོན་འགྲུས་ཅན",),
    "聪明": ("རིག་པ་ཅན", "གཅང་གྲུང"),
    "勇敢": ("དཔའ་བོ",),
    "富有": ("ཕྱུག་པོ",),
    "贫穷": ("དབུལ་པོ",),
    "有名": ("སྐད་གྲགས་ཅན",),
    "善良": ("བློ་བཟང",),
}
PATIENT_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "新": ("གསར་པ",),
    "旧": ("རྙིང་པ",),
    "大": ("ཆེན་པོ",),
    "小": ("ཆུང་ཆུང", "ཆུང་ངུ"),
    "红": ("དམར་པོ",),
    "白": ("དཀར་པོ",),
    "黑": ("ནག་པོ",),
    "黄": ("སེར་པོ",),
    "绿": ("ལྗང་ཁུ",),
    "蓝": ("སྔོན་པོ",),
    "好": ("ཡག་པོ", "བཟང་པོ"),
    "美丽": ("མཛེས་པོ", "མཛེས་མ"),
}
COUNTS: dict[str, tuple[str, ...]] = {
    "两": ("གཉིས",),
    "三": ("གསུམ",),
    "四": ("བཞི",),
    "五": ("ལྔ",),
    "六": ("དྲུག",),
    "七": ("བདུན",),
    "八": ("བརྒྱད",),
    "十": ("བཅུ",),
}
PLACES: dict[str, tuple[str, ...]] = {
    "学校": ("སློབ་གྲྭ",),
    "家里": ("ཁྱིམ", "ནང"),
    "市场": ("ཁྲོམ", "ཁྲོམ་ར"),
    "拉萨": ("ལྷ་ས",),
    "寺庙": ("དགོན་པ",),
    "草原": ("རྩྭ་ཐང",),
    "医院": ("སྨན་ཁང",),
    "山上": ("རི་ཁ",),
    "河边": ("ཆུ་འགྲམ", "གཙང་པོའི་འགྲམ"),
    "城里": ("གྲོང་ཁྱེར",),
    "村里": ("གྲོང་ཚོ", "སྡེ་བ"),
    "商店": ("ཚོང་ཁང",),
    "饭馆": ("ཟ་ཁང",),
    "车站": ("འབབ་ཚུགས",),
    "北京": ("པེ་ཅིན",),
    "邮局": ("སྦྲག་ཁང",),
}
TIMES: dict[str, tuple[str, ...]] = {
    "昨天": ("ཁ་སང", "ཁ་ས"),
    "今天": ("དེ་རིང",),
    "前天": ("ཁས་ཉིན་ཀ",),
    "早上": ("ཞོགས་པ",),
    "中午": ("ཉིན་གུང",),
    "晚上": ("དགོང་མོ", "དགོང་དྲོ"),
    "去年": ("ན་ནིང",),
    "今年": ("ད་ལོ",),
    "春天": ("དཔྱིད་ཀ",),
    "夏天": ("དབྱར་ཁ",),
    "秋天": ("སྟོན་ཁ",),
    "冬天": ("དགུན་ཁ",),
}
# Chinese word -> (measure word, class, Tibetan words).
PATIENTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "书": ("本", "text", ("དེབ", "དཔེ་ཆ")),
    "信": ("封", "text", ("འཕྲིན་ཡིག", "ཡི་གེ")),
    "报纸": ("份", "text", ("ཚགས་པར",)),
    "诗": ("首", "text", ("སྙན་ངག",)),
    "文章": ("篇", "text", ("དཔྱད་རྩོམ",)),
    "茶": ("杯", "drink", ("ཇ",)),
    "牛奶": ("杯", "drink", ("འོ་མ",)),
    "酸奶": ("碗", "drink", ("ཞོ",)),
    "水": ("碗", "drink", ("ཆུ",)),
    "糌粑": ("碗", "food", ("རྩམ་པ",)),
    "肉": ("块", "food", ("ཤ",)),
    "面包": ("块", "food", ("བག་ལེབ",)),
    "苹果": ("个", "food", ("ཀུ་ཤུ",)),
    "水果": ("个", "food", ("ཤིང་ཏོག", "ཤིང་འབྲས")),
    "蔬菜": ("斤", "food", ("ཚལ", "སྔོ་ཚལ")),
    "酥油": ("斤", "food", ("མར",)),
    "衣服": ("件", "clothes", ("གོས", "གྱོན་ཆས")),
    "帽子": ("顶", "clothes", ("ཞྭ་མོ",)),
    "鞋": ("双", "clothes", ("ལྷམ",)),
    "桌子": ("张", "goods", ("ཅོག་ཙེ",)),
    "椅子": ("把", "goods", ("རྐུབ་ཀྱག", "རྐུབ་སྟེགས")),
    "刀": ("把", "goods", ("གྲི",)),
    "碗": ("个", "goods", ("ཕོར་པ",)),
    "杯子": ("个", "goods", ("དཀར་ཡོལ",)),
    "地毯": ("张", "goods", ("གྲུམ་ཙེ", "ས་གདན")),
    "钥匙": ("把", "goods", ("ལྡེ་མིག",)),
    "包": ("个", "goods", ("ཁུག་མ",)),
    "药": ("份", "goods", ("སྨན",)),
    "钟": ("个", "machine", ("ཆུ་ཚོད",)),
    "车": ("辆", "machine", ("རླངས་འཁོར",)),
    "自行车": ("辆", "machine", ("རྐང་འཁོར",)),
    "电话": ("个", "machine", ("ཁ་པར",)),
    "马": ("匹", "animal", ("རྟ",)),
    "牦牛": ("头", "animal", ("གཡག",)),
    "羊": ("只", "animal", ("ལུག",)),
    "狗": ("只", "animal", ("ཁྱི",)),
    "花": ("朵", "plant", ("མེ་ཏོག",)),
    "树": ("棵", "plant", ("ཤིང་སྡོང", "སྡོང་པོ")),
    "青稞": ("斤", "plant", ("ནས་འབྲུ",)),
}
# Chinese word -> (the classes of things it is done to, Tibetan verbs in the past).
ACTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "买": (("text", "drink", "food", "clothes", "goods", "machine", "animal", "plant"), ("ཉོས",)),
    "卖": (("text", "drink", "food", "clothes", "goods", "machine", "animal", "plant"), ("བཙོངས",)),
    "看见": (("text", "food", "clothes", "goods", "machine", "animal", "plant"), ("མཐོང",)),
    "找到": (("text", "clothes", "goods", "machine", "animal"), ("རྙེད",)),
    "丢失": (("text", "clothes", "goods", "machine", "animal"), ("བོར", "བརླགས")),
    "带来": (("text", "drink", "food", "clothes", "goods", "plant"), ("ཁྱེར",)),
    "赠送": (("text", "food", "clothes", "goods", "animal", "plant"), ("ཕུལ", "བྱིན")),
    "借": (("text", "clothes", "goods", "machine", "animal"), ("གཡར", "བརྙས")),
    "读": (("text",), ("བཀླགས",)),
    "写": (("text",), ("བྲིས",)),
    "吃": (("food",), ("ཟོས", "བཟས")),
    "喝": (("drink",), ("འཐུངས", "བཏུངས")),
    "煮": (("food", "drink"), ("བཙོས",)),
    "洗": (("clothes", "food"), ("བཀྲུས", "བཤལ")),
    "做": (("food", "clothes"), ("བཟོས",)),
    "穿": (("clothes",), ("གྱོན", "གོན")),
    "种": (("plant",), ("བཏབ", "བཙུགས")),
    "养": (("animal",), ("གསོས", "བསྐྱངས")),
    "修理": (("goods", "machine"), ("བཅོས",)),
    "使用": (("goods", "machine"), ("སྤྱད",)),
    "换": (("text", "clothes", "goods", "machine", "animal"), ("བརྗེས",)),
    "藏": (("text", "food", "clothes", "goods"), ("སྦས",)),
}
NEGATION = ("没", "མ")
LOCATIVES = ("ལ", "ནས", "ན")
AUXILIARY = "སོང"

PATIENT_WORDS = {word: phrases for word, (_, _, phrases) in PATIENTS.items()}
ACTION_WORDS = {word: phrases for word, (_, phrases) in ACTIONS.items()}
TABLES = (AGENTS, AGENT_ATTRIBUTES, PATIENT_ATTRIBUTES, COUNTS, PLACES, TIMES)
"""The slots whose tables hold nothing but words."""

_PATIENTS_BY_CLASS = {
    kind: tuple(word for word, (_, its_kind, _) in PATIENTS.items() if its_kind == kind)
    for kind in dict.fromkeys(kind for _, kind, _ in PATIENTS.values())
}
_OPTIONAL_SLOTS: dict[str, tuple[tuple[str, ...], float]] = {
    "agent_attribute": (tuple(AGENT_ATTRIBUTES), 0.4),
    "patient_attribute": (tuple(PATIENT_ATTRIBUTES), 0.45),
    "count": (tuple(COUNTS), 0.35),
    "place": (tuple(PLACES), 0.55),
    "time": (tuple(TIMES), 0.5),
    "negation": ((NEGATION[0],), 0.12),
}


def patients_of(action: str) -> tuple[str, ...]:
    """The things that `action` can be done to."""
    return tuple(word for kind in ACTIONS[action][0] for word in _PATIENTS_BY_CLASS[kind])


def draw_event(rng: random.Random, split: Split, **given: str | None) -> Event:
    """Draw an event of `split`; slots named in `given` are taken as they are."""
    while True:
        action = given.get("action") or rng.choice(tuple(ACTIONS))
        optional = {
            slot: given[slot] if slot in given else rng.choice(words) if rng.random() < share else None
            for slot, (words, share) in _OPTIONAL_SLOTS.items()
        }
        if optional["negation"] and "count" not in given:
            optional["count"] = None  # "did not buy three books" would be ambiguous
        event = Event(
            agent=given.get("agent") or rng.choice(tuple(AGENTS)),
            action=action,
            patient=given.get("patient") or rng.choice(patients_of(action)),
            **optional,
        )
        if event.split() == split:
            return event


def corrupt(event: Event, rng: random.Random) -> Event:
    """`event` with exactly one slot changed, emptied or filled, still sayable."""
    while True:
        slot = rng.choice([field.name for field in fields(event)])
        now = getattr(event, slot)
        choices: Sequence[str | None]
        if slot == "patient":
            choices = patients_of(event.action)
        elif slot == "action":
            choices = [action for action in ACTIONS if event.patient in patients_of(action)]
        elif slot == "agent":
            choices = tuple(AGENTS)
        else:
            choices = (*_OPTIONAL_SLOTS[slot][0], None)
        others = [choice for choice in choices if choice != now]
        if others:
            return replace(event, **{slot: rng.choice(others)})  # type: ignore[arg-type]  # None only where allowed


def ergative(phrase: str) -> str:
    """`phrase` with the agent particle that its last letter asks for."""
    last = phrase[-1]
    if last in "དབས":
        return f"{phrase}{TSHEG}ཀྱིས"
    if last in "གང":
        return f"{phrase}{TSHEG}གིས"
    if last in "ནམརལ" and not _open_syllable(phrase):
        return f"{phrase}{TSHEG}གྱིས"
    return f"{phrase}ས"


def _open_syllable(phrase: str) -> bool:
    """Whether the last syllable is a single consonant, which reads with an inherent vowel (མ, པ, ར)."""
    return len(phrase.rsplit(TSHEG, 1)[-1]) == 1


def indefinite(phrase: str) -> str:
    """The indefinite article in the form that follows `phrase`."""
    last = phrase[-1]
    if _open_syllable(phrase) or last not in "གདབས":
        return "ཞིག"
    return "ཤིག" if last == "ས" else "ཅིག"


def nominalizer(verb: str) -> str:
    """The particle that makes a noun of `verb` in the past: པ, or བ after a vowel, ང, ར and ལ."""
    return "པ" if verb[-1] in "གདནབམས" else "བ"


def _end(words: Sequence[str]) -> str:
    sentence = TSHEG.join(words)
    return f"{sentence}{TSHEG}{SHAD}" if sentence.endswith("ང") else f"{sentence}{SHAD}"


def tibetan(event: Event, rng: random.Random, *, headline: bool = False) -> str:
    """One correct Tibetan sentence for `event`; every draw of `rng` is another realization.

    Args:
        event: What to say.
        rng: Chooses synonyms, particles and word order.
        headline: End in the nominalized verb, as titles do, with no article or auxiliary.
    """
    agent = rng.choice(AGENTS[event.agent])
    if event.agent_attribute:
        agent += TSHEG + rng.choice(AGENT_ATTRIBUTES[event.agent_attribute])
    before = [ergative(agent)]
    if event.place:
        before.append(rng.choice(PLACES[event.place]) + TSHEG + rng.choice(LOCATIVES))
    if event.time:
        before.append(rng.choice(TIMES[event.time]))
    rng.shuffle(before)

    patient = rng.choice(PATIENTS[event.patient][2])
    if event.patient_attribute:
        patient += TSHEG + rng.choice(PATIENT_ATTRIBUTES[event.patient_attribute])
    if event.count:
        patient += TSHEG + rng.choice(COUNTS[event.count])
    elif not event.negation and not headline and rng.random() < 0.5:
        patient += TSHEG + indefinite(patient)

    verb = rng.choice(ACTIONS[event.action][1])
    tail = [NEGATION[1], verb] if event.negation else [verb]
    if headline:
        tail.append(nominalizer(verb))
    elif not event.negation and rng.random() < 0.4:
        tail.append(AUXILIARY)
    return _end([*before, patient, *tail])


def chinese(event: Event, rng: random.Random, *, headline: bool = False) -> str:
    """One correct Chinese sentence for `event` (two word orders; a headline drops 了 and the full stop)."""
    agent = f"{event.agent_attribute}的{event.agent}" if event.agent_attribute else event.agent
    place = f"在{event.place}" if event.place else ""
    thing = event.patient
    if event.patient_attribute:
        thing = f"{event.patient_attribute}的{thing}"
    if event.count:
        thing = f"{event.count}{PATIENTS[event.patient][0]}{thing}"
    verb = f"没{event.action}" if event.negation else event.action if headline else f"{event.action}了"
    time = event.time or ""
    head = f"{time}{agent}" if rng.random() < 0.5 else f"{agent}{time}"
    return f"{head}{place}{verb}{thing}" + ("" if headline else "。")

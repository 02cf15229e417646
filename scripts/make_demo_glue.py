#!/usr/bin/env python
"""Write a small made-up GLUE, in the real one's folders, files and columns, to try things out without a download.

All nine tasks and the diagnostic set come from a small grammar of English. A row's label follows from how its
sentences were made: two wordings of one event are a paraphrase, the same words with exchanged roles are not. Which
words occur says little about a label; their order and how the two sentences relate decide. Scores on this data tell
whether training works; they tell nothing about GLUE.
"""

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from command_line import OneLineParser, at_least, write_whole

# ------------------------------------------------------------------------------------------ vocabulary

Synonyms = tuple[str, ...]
Action = tuple[Synonyms, Synonyms]  # verbs for it, verbs for its opposite


class Vocabulary(NamedTuple):
    """The words of one genre. Nouns and verbs are regular: suffixes inflect them."""

    genre: str
    people: tuple[Synonyms, ...]
    actions: tuple[Action, ...]
    places: tuple[str, ...]
    times: tuple[str, ...]


def _vocabulary(genre: str, people: str, actions: str, places: str, times: str) -> Vocabulary:
    """Parse the lists below, in which "/" parts synonyms and "-" opposites."""
    pairs = tuple(tuple(tuple(verbs.split("/")) for verbs in pair.split("-")) for pair in actions.split())
    return Vocabulary(
        genre,
        people=tuple(tuple(nouns.split("/")) for nouns in people.split()),
        actions=pairs + tuple(pair[::-1] for pair in pairs),
        places=tuple(places.split(", ")),
        times=tuple(times.split(", ")),
    )


TOWN = _vocabulary(
    "town",
    "doctor/physician lawyer/attorney teacher/instructor writer/author actor/performer cook/chef painter/artist "
    "driver/chauffeur student/pupil reporter/journalist scientist/researcher manager/director guest/visitor "
    "singer/vocalist pilot/aviator farmer baker neighbor officer dancer nurse clerk builder banker gardener mechanic",
    "help/assist-harm/injure hire/employ-fire/dismiss praise/applaud-criticize/blame trust/believe-doubt/suspect "
    "love/adore-hate/dislike protect/defend-attack/assault welcome/greet-ignore/reject reward-punish "
    "comfort/calm-annoy/bother amuse/entertain-bore",
    "in the park, at the station, in the office, at the market, in the kitchen, near the river, at the hotel, "
    "in the library, at the theater, on the bridge, in the garden, at the airport",
    "on Monday, on Friday, last week, last night, in the morning, in the evening, yesterday, last summer, at noon, "
    "last year",
)
CASTLE = _vocabulary(
    "castle",
    "king/ruler knight/warrior guard/sentry merchant/trader captain/commander robber/bandit wizard/magician "
    "peasant/villager stranger/outsider jester queen prince servant priest monk duke bishop hunter sailor "
    "soldier messenger shepherd poet giant pirate rider",
    "free/release-arrest/imprison honor/respect-insult/offend support/aid-betray/deceive rescue/save-abandon/desert "
    "admire/worship-despise/detest heal/cure-poison pardon/excuse-condemn obey-disobey bless-curse visit-avoid",
    "in the castle, at the gate, in the forest, on the ship, in the tower, near the lake, at the harbor, "
    "in the village, on the mountain, in the temple, on the island, at the palace",
    "at dawn, at midnight, last winter, last spring, in the afternoon, during the war, after the feast, "
    "before the storm, on Sunday, long ago",
)

INTRANSITIVE = "slept smiled waited arrived laughed fell died cried sneezed coughed vanished yawned".split()

ASPECTS = "film movie story plot acting cast music script ending humor dialogue pace drama comedy camera work".split()
GOOD = (
    "great wonderful funny charming clever brilliant touching exciting lovely fresh excellent delightful enjoyable "
    "beautiful moving fascinating"
).split()
BAD = (
    "bad awful boring dull terrible weak stupid ugly poor silly tedious annoying stale horrible lame disappointing"
).split()
AFFIRMED = ("is", "is really", "is truly", "is quite", "feels", "seems")
NEGATED = ("is not", "is never", "is hardly", "is far from", "is anything but", "does not feel")
OPENERS = ("", "", "", "to me , ", "as a whole , ", "in short , ", "for once , ", "after an hour , ", "in the end , ")

# "A <verb> B because she <reason>": with the first verb she is A, with the second B.
PRONOUNS = (
    ("apologized to", "scolded", "had been rude"),
    ("disappointed", "blamed", "had told a lie"),
    ("scared", "avoided", "was very angry"),
    ("amused", "enjoyed meeting", "knew good jokes"),
    ("begged", "paid", "needed money"),
    ("called", "advised", "wanted advice"),
    ("impressed", "rewarded", "had worked hard"),
    ("lied to", "doubted", "wanted to hide the truth"),
)

# --------------------------------------------------------------------------- events and their wordings

DETAILS = ("place", "time")
QUESTION_WORDS = {
    "why": ("why", "for what reason"),
    "place": ("where", "in what place"),
    "time": ("when", "at what time"),
}
PASSIVE = 0.25  # share of the wordings
FRONTED = 0.2  # share of the wordings with a place or time in front


class Event(NamedTuple):
    """Who did, or did not do, what to whom, where and when; an empty place or time is left unsaid."""

    agent: Synonyms
    action: Action
    patient: Synonyms
    place: str
    time: str
    negated: bool


def draw_event(rng: random.Random, words: Vocabulary, details: tuple[str, ...] = (), negated: float = 0.0) -> Event:
    """A random event with these details, negated with that probability."""
    agent, patient = rng.sample(words.people, 2)
    place = rng.choice(words.places) if "place" in details else ""
    time = rng.choice(words.times) if "time" in details else ""
    return Event(agent, rng.choice(words.actions), patient, place, time, rng.random() < negated)


def other(rng: random.Random, choices: tuple, *taken):
    """One of the choices that is not taken."""
    return rng.choice([choice for choice in choices if choice not in taken])


def change(event: Event, part: str, rng: random.Random, words: Vocabulary) -> Event:
    """The event with another meaning in one part."""
    match part:
        case "roles":
            return event._replace(agent=event.patient, patient=event.agent)
        case "negation":
            return event._replace(negated=not event.negated)
        case "opposite":
            return event._replace(action=event.action[::-1])
        case "agent" | "patient":
            return event._replace(**{part: other(rng, words.people, event.agent, event.patient)})
        case _:  # action, place or time
            return event._replace(**{part: other(rng, getattr(words, f"{part}s"), getattr(event, part))})


def differ(event: Event, hard_parts: tuple[str, ...], rng: random.Random, words: Vocabulary) -> Event:
    """Another event: in half of the cases plainly another one, so that there is something to learn first."""
    if rng.random() < 0.5:
        return change(event, rng.choice(hard_parts), rng, words)
    for part in rng.sample(("agent", "action", "patient"), 2):
        event = change(event, part, rng, words)
    return event


def past(verb: str) -> str:
    """The past tense and the participle."""
    return verb + ("d" if verb.endswith("e") else "ed")


def the(nouns: Synonyms, rng: random.Random) -> str:
    return f"the {rng.choice(nouns)}"


def sentence(text: str, end: str = ".") -> str:
    return text[0].upper() + text[1:] + end


def clause(event: Event, rng: random.Random) -> str:
    """One of the event's wordings, which all mean the same: synonyms, active or passive, order of the details."""
    agent, patient, verb = the(event.agent, rng), the(event.patient, rng), rng.choice(event.action[0])
    if rng.random() < PASSIVE:
        text = f"{patient} was {'not ' * event.negated}{past(verb)} by {agent}"
    else:
        text = f"{agent} {f'did not {verb}' if event.negated else past(verb)} {patient}"
    details = [detail for detail in (event.place, event.time) if detail]
    rng.shuffle(details)
    if details and rng.random() < FRONTED:
        text = f"{details.pop()}, {text}"
    return " ".join([text, *details])


def say(event: Event, rng: random.Random) -> str:
    return sentence(clause(event, rng))


def question(asked: str, event: Event, rng: random.Random) -> str:
    """One of the wordings of a question about an event without details: its agent, patient, place, time or why."""
    agent, patient, verb = the(event.agent, rng), the(event.patient, rng), rng.choice(event.action[0])
    if asked == "agent":
        active, passive = f"who {past(verb)} {patient}", f"by whom was {patient} {past(verb)}"
    elif asked == "patient":
        active, passive = f"who did {agent} {verb}", f"who was {past(verb)} by {agent}"
    else:
        start = rng.choice(QUESTION_WORDS[asked])
        active = f"{start} did {agent} {verb} {patient}"
        passive = f"{start} was {patient} {past(verb)} by {agent}"
    return passive if rng.random() < PASSIVE else active


# ----------------------------------------------------------------------------------------------- tasks


class Row(NamedTuple):
    """One example. The label is drawn first and the sentences made to fit, so the classes are about balanced."""

    label: str
    first: str
    second: str = ""  # empty in tasks of single sentences
    genre: str = ""


def cola(rng: random.Random, words: Vocabulary) -> Row:
    """Acceptability. Each word stands in good sentences as often as in bad ones."""
    good = rng.random() < 0.5
    build = rng.choice((_agreement, _word_order, _arguments))
    return Row(str(int(good)), sentence(f"{build(good, rng, words)} {rng.choice(words.places)}"))


def _agreement(good: bool, rng: random.Random, words: Vocabulary) -> str:
    """The doctors near the lawyer praise the nurse; not: the doctors near the lawyer praises the nurse."""
    head, attractor, patient = (rng.choice(nouns) for nouns in rng.sample(words.people, 3))
    verb = rng.choice(rng.choice(words.actions)[0])
    plural = rng.random() < 0.5
    if plural != good:
        verb += "es" if verb.endswith(("s", "sh")) else "s"
    preposition = rng.choice(("near", "behind", "beside", "with"))
    return f"the {head}{'s' * plural} {preposition} the {attractor}{rng.choice(('', 's'))} {verb} the {patient}"


def _word_order(good: bool, rng: random.Random, words: Vocabulary) -> str:
    """The doctor praised the lawyer; not: the doctor the lawyer praised."""
    event = draw_event(rng, words)
    agent, verb, patient = the(event.agent, rng), past(rng.choice(event.action[0])), the(event.patient, rng)
    if good:
        return f"{agent} {verb} {patient}"
    article_last = " ".join(reversed(agent.split()))
    return rng.choice((f"{agent} {patient} {verb}", f"{verb} {agent} {patient}", f"{article_last} {verb} {patient}"))


def _arguments(good: bool, rng: random.Random, words: Vocabulary) -> str:
    """The doctor praised the lawyer, the doctor slept; not: the doctor praised, the doctor slept the lawyer."""
    event = draw_event(rng, words)
    transitive = rng.random() < 0.5
    verb = past(rng.choice(event.action[0])) if transitive else rng.choice(INTRANSITIVE)
    return f"{the(event.agent, rng)} {verb}" + f" {the(event.patient, rng)}" * (transitive == good)


def sst_2(rng: random.Random, words: Vocabulary) -> Row:
    """Sentiment. Negation turns a judgement round, and of two opposite judgements the main clause's counts."""
    positive = rng.random() < 0.5
    text = _judgement(positive, rng)
    if rng.random() < 0.3:
        aside = _judgement(not positive, rng)
        text = rng.choice((f"although {aside} , {text}", f"{aside} , but {text}", f"{text} , although {aside}"))
    return Row(str(int(positive)), f"{rng.choice(OPENERS)}{text} .")


def _judgement(positive: bool, rng: random.Random) -> str:
    negated = rng.random() < 0.4
    adjective = rng.choice(GOOD if positive != negated else BAD)
    return f"the {rng.choice(ASPECTS)} {rng.choice(NEGATED if negated else AFFIRMED)} {adjective}"


def mrpc(rng: random.Random, words: Vocabulary) -> Row:
    """Paraphrase: one event in two wordings, or two events."""
    first = second = draw_event(rng, words, (rng.choice(DETAILS),), negated=0.5)
    paraphrase = rng.random() < 0.5
    if not paraphrase:
        second = differ(first, ("roles", "negation", "opposite"), rng, words)
    return Row(str(int(paraphrase)), say(first, rng), say(second, rng))


def sts_b(rng: random.Random, words: Vocabulary) -> Row:
    """Similarity: the score is the weight of the parts in which two events agree."""
    first = second = draw_event(rng, words, ("place",))
    score = 0.0
    for part, weight in (("agent", 1.2), ("action", 1.8), ("patient", 1.2), ("place", 0.8)):
        if rng.random() < 0.5:
            score += weight
        else:
            second = change(second, part, rng, words)
    return Row(f"{score:.3f}", say(first, rng), say(second, rng))


def qqp(rng: random.Random, words: Vocabulary) -> Row:
    """Duplicate questions: one question in two wordings, or questions for two things or about two events."""
    first = second = draw_event(rng, words)
    asked = also_asked = rng.choice(tuple(QUESTION_WORDS))
    duplicate = rng.random() < 0.5
    if not duplicate and rng.random() < 0.25:
        also_asked = other(rng, tuple(QUESTION_WORDS), asked)
    elif not duplicate:
        second = differ(first, ("roles", "opposite"), rng, words)
    texts = question(asked, first, rng), question(also_asked, second, rng)
    return Row(str(int(duplicate)), *(sentence(text, "?") for text in texts))


def mnli(rng: random.Random, words: Vocabulary) -> Row:
    """Entailment: another wording, or less detail; contradiction: its contrary; neutral: another event."""
    # With a third of the premises negated, "not" is as frequent in the hypotheses of all three labels.
    premise = hypothesis = draw_event(rng, words, rng.choice((*zip(DETAILS), DETAILS)), negated=1 / 3)
    # "Did not praise on Monday" does not entail "did not praise".
    if premise.place and premise.time and not premise.negated and rng.random() < 0.5:
        hypothesis = premise._replace(**{rng.choice(DETAILS): ""})
    label = rng.choice(("contradiction", "entailment", "neutral"))
    if label == "contradiction":
        # "Did not praise" and "criticized" can both be true.
        part = "negation" if premise.negated else rng.choice(("negation", "opposite"))
        hypothesis = change(hypothesis, part, rng, words)
    elif label == "neutral":
        said = [detail for detail in DETAILS if getattr(hypothesis, detail)]
        hypothesis = differ(hypothesis, ("roles", *said), rng, words)
    return Row(label, say(premise, rng), say(hypothesis, rng), words.genre)


def qnli(rng: random.Random, words: Vocabulary) -> Row:
    """Does the sentence answer the question? Not if it tells of something else than what is asked, or another event."""
    asked = rng.choice(("agent", "patient", *DETAILS))
    event = draw_event(rng, words)
    answer = change(event, asked if asked in DETAILS else rng.choice(DETAILS), rng, words)
    answered = rng.random() < 0.5
    if not answered and asked in DETAILS and rng.random() < 0.5:
        answer = change(event, other(rng, DETAILS, asked), rng, words)
    elif not answered:
        answer = differ(answer, ("roles", "opposite"), rng, words)
    return Row(_entailment(answered), sentence(question(asked, event, rng), "?"), say(answer, rng))


def rte(rng: random.Random, words: Vocabulary) -> Row:
    """Entailment from a premise that tells of two events."""
    event = aside = draw_event(rng, words, rng.choice(((), *zip(DETAILS))), negated=0.5)
    while {event.agent, event.patient} & {aside.agent, aside.patient}:
        aside = draw_event(rng, words, negated=0.5)
    premise = [clause(event, rng), clause(aside, rng)]
    rng.shuffle(premise)
    entailed = rng.random() < 0.5
    if not entailed:
        event = differ(event, ("roles", "negation", "opposite"), rng, words)
    return Row(_entailment(entailed), sentence(", and ".join(premise)), say(event, rng))


def _entailment(entailed: bool) -> str:
    return "entailment" if entailed else "not_entailment"


def wnli(rng: random.Random, words: Vocabulary) -> Row:
    """Who is the pronoun? The verb decides, not the reason."""
    people = [the(nouns, rng) for nouns in rng.sample(words.people, 2)]
    *verbs, reason = rng.choice(PRONOUNS)
    who, named = rng.randrange(2), rng.randrange(2)
    pronoun, time = rng.choice(("he", "she")), rng.choice(words.times)
    first = sentence(f"{people[0]} {verbs[who]} {people[1]} {time} because {pronoun} {reason}")
    return Row(str(int(who == named)), first, sentence(f"{people[named]} {reason}"))


# ---------------------------------------------------------------------------------------------- layout


class File(NamedTuple):
    """A file of a task: its columns bear GLUE's names, and `cells` fills them."""

    name: str
    split: str
    columns: str
    header: bool = True
    words: Vocabulary = TOWN


class Task(NamedTuple):
    """A folder, how a row of it is made, and its files."""

    folder: str
    draw_row: Callable[[random.Random, Vocabulary], Row]
    files: tuple[File, ...]


def _files(labelled: str, test: str, header: bool = True) -> tuple[File, ...]:
    return (
        File("train.tsv", "train", labelled, header),
        File("dev.tsv", "dev", labelled, header),
        File("test.tsv", "test", test),
    )


_PAIR = "index,sentence1,sentence2"
_MRPC = "#1 ID,#2 ID,#1 String,#2 String"
_STS_B = "index,genre,filename,year,old_index,source1,source2,sentence1,sentence2"
_PARSES = "sentence1_binary_parse,sentence2_binary_parse,sentence1_parse,sentence2_parse"
_MNLI = f"index,promptID,pairID,genre,{_PARSES},sentence1,sentence2"
_MNLI_DEV = f"{_MNLI},label1,label2,label3,label4,label5,gold_label"

TASKS = (
    Task("CoLA", cola, _files("source,label,judgement,sentence", "index,sentence", header=False)),
    Task("SST-2", sst_2, _files("sentence,label", "index,sentence")),
    Task("MRPC", mrpc, _files(f"Quality,{_MRPC}", f"index,{_MRPC}")),
    Task("STS-B", sts_b, _files(f"{_STS_B},score", _STS_B)),
    Task("QQP", qqp, _files("id,qid1,qid2,question1,question2,is_duplicate", "id,question1,question2")),
    Task(
        "MNLI",
        mnli,
        (
            File("train.tsv", "train", f"{_MNLI},label1,gold_label"),
            File("dev_matched.tsv", "dev", _MNLI_DEV),
            File("dev_mismatched.tsv", "dev", _MNLI_DEV, words=CASTLE),
            File("test_matched.tsv", "test", _MNLI),
            File("test_mismatched.tsv", "test", _MNLI, words=CASTLE),
        ),
    ),
    Task("QNLI", qnli, _files("index,question,sentence,label", "index,question,sentence")),
    Task("RTE", rte, _files(f"{_PAIR},label", _PAIR)),
    Task("WNLI", wnli, _files(f"{_PAIR},label", _PAIR)),
    Task("diagnostic", mnli, (File("diagnostic.tsv", "test", _PAIR),)),
)
ALIASES = {"sst2": "sst-2", "stsb": "sts-b", "mnli-mm": "mnli", "ax": "diagnostic"}


def cells(index: int, row: Row) -> dict[str, str]:
    """A row's cell in each column that any file has; filler in those that no reader looks at."""
    label, first, second, genre = row
    return {
        **dict.fromkeys(("question", "question1", "sentence1", "#1 String"), first),
        **dict.fromkeys(("question2", "sentence2", "#2 String"), second),
        "sentence": second or first,  # in QNLI it stands beside the question
        **dict.fromkeys(("label", "Quality", "score", "is_duplicate", "gold_label"), label),
        **dict.fromkeys(("label1", "label2", "label3", "label4", "label5"), label),
        "judgement": "*" if label == "0" else "",
        **dict.fromkeys(("index", "id", "old_index", "promptID", "pairID"), str(index)),
        **dict.fromkeys(("qid1", "#1 ID"), str(2 * index + 1)),
        **dict.fromkeys(("qid2", "#2 ID"), str(2 * index + 2)),
        "genre": genre or "main-demo",
        **dict.fromkeys(("source", "filename"), "demo"),
        **dict.fromkeys(("source1", "source2"), "none"),
        "year": "2020",
        **dict.fromkeys(("sentence1_binary_parse", "sentence1_parse"), f"( {first} )"),
        **dict.fromkeys(("sentence2_binary_parse", "sentence2_parse"), f"( {second} )"),
    }


def draw_rows(task: Task, file: File, n_rows: int, seed: int, taken: set[frozenset[str]]) -> list[Row]:
    """So many rows for a file, none with the sentences of a row in `taken`, to which they are added.

    Raises:
        ValueError: the grammar has no more rows to give.
    """
    # Seeded by name: a file does not depend on which others are asked for.
    rng = random.Random(f"{seed} {task.folder} {file.name}")
    rows: list[Row] = []
    n_tries = 0
    while len(rows) < n_rows:
        row = task.draw_row(rng, file.words)
        sentences = frozenset((row.first, row.second))
        n_tries += 1
        if len(sentences) == 2 and sentences not in taken:  # a sentence beside itself would give its label away
            taken.add(sentences)
            rows.append(row)
        elif n_tries > 20 * n_rows + 1000:
            raise ValueError(f"{task.folder}: cannot make {n_rows} different rows for {file.name}; ask for fewer")
    return rows


def file_text(file: File, rows: list[Row]) -> str:
    columns = file.columns.split(",")
    lines = [columns] * file.header
    for index, row in enumerate(rows):
        filled = cells(index, row)
        lines.append([filled[column] for column in columns])
    return "".join("\t".join(line) + "\n" for line in lines)


# ---------------------------------------------------------------------------------------- command line


def _task(text: str) -> Task:
    for task in TASKS:
        if task.folder.lower() == ALIASES.get(text.lower(), text.lower()):
            return task
    raise argparse.ArgumentTypeError(f"there is no {text}; there are {', '.join(task.folder for task in TASKS)}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(prog="make_demo_glue.py", description=__doc__)
    add = parser.add_argument
    add("output_dir", type=Path, metavar="OUTPUT_DIR", help="where the tasks' folders go: OUTPUT_DIR/MRPC and so on")
    folders = ", ".join(task.folder for task in TASKS)
    add("--tasks", nargs="+", type=_task, default=TASKS, metavar="TASK", help=f"from {folders} (default: all)")
    add("--train_rows", type=at_least(1), default=1000, metavar="N", help="rows of a train set (default: %(default)s)")
    add("--dev_rows", type=at_least(1), default=200, metavar="N", help="rows of a dev set (default: %(default)s)")
    add("--test_rows", type=at_least(1), default=200, metavar="N", help="rows of a test set (default: %(default)s)")
    add("--seed", type=int, default=42, help="the same seed gives the same files (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace files that are there already")
    args = parser.parse_args(argv)
    args.tasks = tuple(dict.fromkeys(args.tasks))
    paths = [args.output_dir / task.folder / file.name for task in args.tasks for file in task.files]
    for path in paths if not args.overwrite else ():
        if path.exists():
            parser.error(f"{path} is there already; --overwrite replaces it")
    return args


def main() -> None:
    args = parse_args()
    n_rows = {"train": args.train_rows, "dev": args.dev_rows, "test": args.test_rows}
    texts: dict[Path, str] = {}
    try:
        for task in args.tasks:
            taken: set[frozenset[str]] = set()
            for file in reversed(task.files):  # test and dev first: they stay the same when the train set grows
                rows = draw_rows(task, file, n_rows[file.split], args.seed, taken)
                texts[args.output_dir / task.folder / file.name] = file_text(file, rows)
        for path, text in texts.items():  # only now, so that nothing is written when a task fails
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text.encode())
    except (OSError, ValueError) as error:
        sys.exit(f"make_demo_glue.py: error: {error}")
    for task in args.tasks:
        counts = ", ".join(f"{file.name} ({n_rows[file.split]} rows)" for file in task.files)
        print(f"{args.output_dir / task.folder}: {counts}")


if __name__ == "__main__":
    main()

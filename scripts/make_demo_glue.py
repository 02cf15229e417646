#!/usr/bin/env python
"""Write a small made-up GLUE, in the real one's folders, files and columns, to try things out without a download.

All nine tasks and the diagnostic set come from a small grammar of English. A row's label decides how its sentences
are made: two wordings of one event are a paraphrase, the same words with exchanged roles are not. Single words say
little about a label. Scores on this data tell whether training works, and nothing about GLUE.
"""

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bert_of_theseus.run.command_line import OneLineParser, UserError, at_least, one_line_errors
from bert_of_theseus.run.files import write_whole
from glue_processors import TASKS, GlueTask, find_task

PEOPLE = "doctor lawyer teacher writer actor cook painter driver student scientist guest singer pilot farmer".split()
MISMATCHED_PEOPLE = "king queen knight guard captain robber wizard jester prince priest monk duke sailor poet".split()

Action = tuple[list[str], list[str]]  # verbs for it, verbs for its opposite; all are regular
_PAIRS = (
    "help/assist harm/injure, hire/employ fire/dismiss, praise/applaud criticize/blame, trust/believe doubt/suspect, "
    "love/adore hate/dislike, protect/defend attack/assault, welcome/greet ignore/reject, comfort/calm annoy/bother"
)
_ACTIONS: list[Action] = [tuple(verbs.split("/") for verbs in pair.split()) for pair in _PAIRS.split(", ")]
ACTIONS = _ACTIONS + [action[::-1] for action in _ACTIONS]

PLACES = "in the park, at the station, in the office, at the market, near the river, at the hotel, on the bridge"
TIMES = "on Monday, on Friday, last week, last night, in the morning, in the evening, yesterday, last summer, at noon"
DETAILS = {"where": PLACES.split(", "), "when": TIMES.split(", ")}
ALL_DETAILS = DETAILS["where"] + DETAILS["when"]

ASPECTS = "film movie story plot acting cast music script ending humor dialogue pace drama comedy camera work".split()
GOOD = "great wonderful funny charming clever brilliant touching exciting lovely fresh excellent delightful".split()
BAD = "bad awful boring dull terrible weak stupid ugly poor silly tedious annoying".split()
AFFIRMED = ("is", "is really", "is truly", "feels", "seems")
NEGATED = ("is not", "is never", "is hardly", "is far from", "does not feel")

# "A <verb> B because she <reason>": with the first verb she is A, with the second B.
PRONOUNS = (
    ("apologized to", "scolded", "had been rude"),
    ("disappointed", "blamed", "had told a lie"),
    ("scared", "avoided", "was very angry"),
    ("amused", "enjoyed meeting", "knew good jokes"),
    ("called", "advised", "wanted advice"),
    ("lied to", "doubted", "wanted to hide the truth"),
)

PASSIVE = 0.3  # share of the sentences
FRONTED = 0.3  # share of the details


class Event(NamedTuple):
    """Who did, or did not do, what to whom, and a detail: where or when."""

    agent: str
    action: Action
    patient: str
    detail: str
    negated: bool


def draw_event(rng: random.Random, people: list[str], negated: float = 0.0) -> Event:
    """A random event with a detail, negated with this probability."""
    agent, patient = rng.sample(people, 2)
    return Event(agent, rng.choice(ACTIONS), patient, rng.choice(ALL_DETAILS), rng.random() < negated)


def change(event: Event, part: str, rng: random.Random, people: list[str]) -> Event:
    """The event with another meaning in one part."""
    if part == "roles":
        return event._replace(agent=event.patient, patient=event.agent)
    if part == "negation":
        return event._replace(negated=not event.negated)
    if part == "opposite":
        return event._replace(action=event.action[::-1])
    choices = {"agent": people, "patient": people, "action": ACTIONS, "detail": ALL_DETAILS}
    return event._replace(**{part: rng.choice([choice for choice in choices[part] if choice not in event])})


def differ(event: Event, hard_parts: list[str], rng: random.Random, people: list[str]) -> Event:
    """Another event: in half of the cases plainly another one, so that there is something to learn first."""
    if rng.random() < 0.5:
        return change(event, rng.choice(hard_parts), rng, people)
    for part in rng.sample(("agent", "action", "patient"), 2):
        event = change(event, part, rng, people)
    return event


def past(verb: str) -> str:
    """The past tense and the participle."""
    return verb + ("d" if verb.endswith("e") else "ed")


def clause(event: Event, rng: random.Random) -> str:
    """One wording of the event: a synonym for the action, active or passive, the detail in front or at the end."""
    verb = rng.choice(event.action[0])
    if rng.random() < PASSIVE:
        text = f"the {event.patient} was {'not ' * event.negated}{past(verb)} by the {event.agent}"
    else:
        text = f"the {event.agent} {f'did not {verb}' if event.negated else past(verb)} the {event.patient}"
    return f"{event.detail}, {text}" if rng.random() < FRONTED else f"{text} {event.detail}"


def sentence(text: str, end: str = ".") -> str:
    """The text with a capital letter and an end."""
    return text[0].upper() + text[1:] + end


def say(event: Event, rng: random.Random) -> str:
    """One wording of the event as a sentence."""
    return sentence(clause(event, rng))


def ask(asked: str, event: Event, rng: random.Random) -> str:
    """One wording of the question where, when or why the event was; its own detail is left out."""
    verb = rng.choice(event.action[0])
    if rng.random() < PASSIVE:
        return sentence(f"{asked} was the {event.patient} {past(verb)} by the {event.agent}", "?")
    return sentence(f"{asked} did the {event.agent} {verb} the {event.patient}", "?")


# For each task a function makes the sentences of a row to fit its label.

Sentences = tuple[str, ...]


def cola(label: str, rng: random.Random, people: list[str]) -> Sentences:
    """Acceptability: in a bad sentence two neighbouring words are exchanged."""
    tokens = clause(draw_event(rng, people), rng).split()
    if label == "0":
        i = rng.randrange(len(tokens) - 1)
        tokens[i], tokens[i + 1] = tokens[i + 1], tokens[i]
    return (sentence(" ".join(tokens)),)


def sst_2(label: str, rng: random.Random, people: list[str]) -> Sentences:
    """Sentiment. Negation reverses a judgement. Of two opposite judgements the main clause's counts."""
    text = judgement(label == "1", rng)
    if rng.random() < 0.3:
        aside = judgement(label == "0", rng)
        text = rng.choice((f"although {aside} , {text}", f"{aside} , but {text}", f"{text} , although {aside}"))
    return (f"{text} .",)


def judgement(positive: bool, rng: random.Random) -> str:
    """A clause that praises a film, or not."""
    negated = rng.random() < 0.4
    adjective = rng.choice(GOOD if positive != negated else BAD)
    return f"the {rng.choice(ASPECTS)} {rng.choice(NEGATED if negated else AFFIRMED)} {adjective}"


def mrpc(label: str, rng: random.Random, people: list[str]) -> Sentences:
    """Paraphrase: one event in two wordings, or two events."""
    first = second = draw_event(rng, people, negated=0.5)
    if label == "0":
        second = differ(first, ["roles", "negation", "opposite"], rng, people)
    return say(first, rng), say(second, rng)


SCORES = ("0.000", "1.250", "2.500", "3.750", "5.000")


def sts_b(label: str, rng: random.Random, people: list[str]) -> Sentences:
    """Similarity: 1.25 for each part in which two events agree."""
    first = second = draw_event(rng, people)
    n_changed = len(SCORES) - 1 - SCORES.index(label)
    for part in rng.sample(("agent", "action", "patient", "detail"), n_changed):
        second = change(second, part, rng, people)
    return say(first, rng), say(second, rng)


def qqp(label: str, rng: random.Random, people: list[str]) -> Sentences:
    """Duplicate questions: one question in two wordings, or questions for two things or about two events."""
    first = second = draw_event(rng, people)
    asked, not_asked = rng.sample(("where", "when", "why"), 2)
    if label == "0" and rng.random() < 0.25:
        return ask(asked, first, rng), ask(not_asked, first, rng)
    if label == "0":
        second = differ(first, ["roles", "opposite"], rng, people)
    return ask(asked, first, rng), ask(asked, second, rng)


def mnli(label: str, rng: random.Random, people: list[str]) -> Sentences:
    """Entailment: another wording of the event. Contradiction: its contrary. Neutral: another event."""
    # With a third of the premises negated, "not" is as frequent in the hypotheses of all three labels.
    premise = hypothesis = draw_event(rng, people, negated=1 / 3)
    if label == "contradiction":
        # "Did not praise" and "criticized" can both be true.
        part = "negation" if premise.negated else rng.choice(("negation", "opposite"))
        hypothesis = change(premise, part, rng, people)
    elif label == "neutral":
        hypothesis = differ(premise, ["roles", "detail"], rng, people)
    return say(premise, rng), say(hypothesis, rng)


def qnli(label: str, rng: random.Random, people: list[str]) -> Sentences:
    """Does the sentence answer the question? Not if it has another kind of detail, or tells of another event."""
    asked, not_asked = rng.sample(("where", "when"), 2)
    event = draw_event(rng, people)
    answer = event._replace(detail=rng.choice(DETAILS[asked]))
    if label == "not_entailment" and rng.random() < 0.5:
        answer = event._replace(detail=rng.choice(DETAILS[not_asked]))
    elif label == "not_entailment":
        answer = differ(answer, ["roles", "opposite"], rng, people)
    return ask(asked, event, rng), say(answer, rng)


def rte(label: str, rng: random.Random, people: list[str]) -> Sentences:
    """Entailment from a premise that tells of two events."""
    event = draw_event(rng, people, negated=0.5)
    # The second event is about other people, so that it never entails a changed first one.
    others = [person for person in people if person not in event]
    clauses = [clause(event, rng), clause(draw_event(rng, others, negated=0.5), rng)]
    rng.shuffle(clauses)
    if label == "not_entailment":
        event = differ(event, ["roles", "negation", "opposite"], rng, people)
    return sentence(", and ".join(clauses)), say(event, rng)


def wnli(label: str, rng: random.Random, people: list[str]) -> Sentences:
    """Who is the pronoun? The verb decides, not the reason."""
    pair = rng.sample(people, 2)
    *verbs, reason = rng.choice(PRONOUNS)
    who = rng.randrange(2)
    named = who if label == "1" else 1 - who
    because = f"{rng.choice(DETAILS['when'])} because {rng.choice(('he', 'she'))} {reason}"
    return sentence(f"the {pair[0]} {verbs[who]} the {pair[1]} {because}"), sentence(f"the {pair[named]} {reason}")


class Layout(NamedTuple):
    """How the sentences of a task are drawn, and GLUE's names for the columns of its files."""

    draw: Callable[[str, random.Random, list[str]], Sentences]
    train: str
    test: str
    dev: str = ""  # where not as in train


_PAIR = "index,sentence1,sentence2"
_MRPC = "#1 ID,#2 ID,#1 String,#2 String"
_STS_B = "index,genre,filename,year,old_index,source1,source2,sentence1,sentence2"
_PARSES = "sentence1_binary_parse,sentence2_binary_parse,sentence1_parse,sentence2_parse"
_MNLI = f"index,promptID,pairID,genre,{_PARSES},sentence1,sentence2"
_MNLI_DEV = f"{_MNLI},label1,label2,label3,label4,label5,gold_label"

LAYOUTS = {
    "CoLA": Layout(cola, "source,label,judgement,sentence", "index,sentence"),
    "SST-2": Layout(sst_2, "sentence,label", "index,sentence"),
    "MRPC": Layout(mrpc, f"Quality,{_MRPC}", f"index,{_MRPC}"),
    "STS-B": Layout(sts_b, f"{_STS_B},score", _STS_B),
    "QQP": Layout(qqp, "id,qid1,qid2,question1,question2,is_duplicate", "id,question1,question2"),
    "MNLI": Layout(mnli, f"{_MNLI},label1,gold_label", _MNLI, _MNLI_DEV),
    "QNLI": Layout(qnli, "index,question,sentence,label", "index,question,sentence"),
    "RTE": Layout(rte, f"{_PAIR},label", _PAIR),
    "WNLI": Layout(wnli, f"{_PAIR},label", _PAIR),
    "diagnostic": Layout(mnli, "", _PAIR),
}


def draw_rows(task: GlueTask, file: str, n_rows: int, seed: int, taken: set) -> list[tuple[str, Sentences]]:
    """Draw the label and the sentences of each row of a file: none that are in `taken`, where the new ones are added.

    Raises:
        UserError: the grammar has no more rows to give.
    """
    # Seeded by name: a file does not depend on which others are asked for.
    rng = random.Random(f"{seed} {task.folder} {file}")
    people = MISMATCHED_PEOPLE if "mismatched" in file else PEOPLE
    rows = []
    for _ in range(n_rows):
        label = rng.choice(task.labels or SCORES)
        for _ in range(200):
            sentences = LAYOUTS[task.folder].draw(label, rng, people)
            # A sentence beside itself would give its label away.
            if len(set(sentences)) == len(sentences) and frozenset(sentences) not in taken:
                break
        else:
            raise UserError(f"{task.folder}: cannot make {n_rows} different rows for {file}; ask for fewer")
        taken.add(frozenset(sentences))
        rows.append((label, sentences))
    return rows


def file_text(task: GlueTask, split: str, rows: list[tuple[str, Sentences]]) -> str:
    """The file's header, where GLUE has one, and its rows, with "-" in columns that nobody reads."""
    layout = LAYOUTS[task.folder]
    columns = (getattr(layout, split) or layout.train).split(",")
    lines = [columns] if task.header or split == "test" else []
    for index, (label, sentences) in enumerate(rows):
        cells = {
            **dict.fromkeys(("index", "id"), str(index)),
            **dict.fromkeys(("question", "question1", "sentence1", "#1 String"), sentences[0]),
            **dict.fromkeys(("question2", "sentence2", "#2 String", "sentence"), sentences[-1]),
            **dict.fromkeys(("label", "label1", "Quality", "score", "is_duplicate", "gold_label"), label),
        }
        lines.append([cells.get(column, "-") for column in columns])
    return "".join("\t".join(line) + "\n" for line in lines)


def _folder(text: str) -> str:
    try:
        return find_task(text).folder
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no {text}; there are {', '.join(LAYOUTS)}") from None


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `tasks` become the folders to make, each once."""
    parser = OneLineParser(prog="make_demo_glue.py", description=__doc__)
    add = parser.add_argument
    add("output_dir", type=Path, metavar="OUTPUT_DIR", help="where the tasks' folders go: OUTPUT_DIR/MRPC and so on")
    names = f"from {', '.join(LAYOUTS)} (default: all)"
    add("--tasks", nargs="+", type=_folder, default=list(LAYOUTS), metavar="TASK", help=names)
    add("--train_rows", type=at_least(1), default=1000, metavar="N", help="rows of a train set (default: %(default)s)")
    add("--dev_rows", type=at_least(1), default=200, metavar="N", help="rows of a dev set (default: %(default)s)")
    add("--test_rows", type=at_least(1), default=200, metavar="N", help="rows of a test set (default: %(default)s)")
    add("--seed", type=int, default=42, help="the same seed gives the same files (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace files that are there already")
    args = parser.parse_args(argv)
    args.tasks = list(dict.fromkeys(args.tasks))
    return args


def main(argv: list[str] | None = None) -> None:
    """Make all files, then write them, so that nothing is written when one cannot be made."""
    args = parse_args(argv)
    texts: dict[Path, str] = {}
    taken = {folder: set() for folder in args.tasks}
    # Train sets are made last, so that the others stay the same when these grow.
    for split in ("test", "dev", "train"):
        for task in TASKS.values():
            file = getattr(task, split)
            if task.folder not in args.tasks or not file:
                continue
            path = args.output_dir / task.folder / file
            if path.exists() and not args.overwrite:
                raise UserError(f"{path} is there already; --overwrite replaces it")
            if path not in texts:  # MNLI's two tasks share a train set
                rows = draw_rows(task, file, getattr(args, f"{split}_rows"), args.seed, taken[task.folder])
                texts[path] = file_text(task, split, rows)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
        print(path)


if __name__ == "__main__":
    with one_line_errors("make_demo_glue.py", OSError):
        main()

"""The README.md that a saved successor carries."""

CARD = """---
library_name: transformers
pipeline_tag: text-classification
tags:
- bert-of-theseus
---
# {name}

A `{model_class}` of {n_layer} layers, {how}.
It is an ordinary model of `transformers`; nothing else is needed to load it.

| | |
|---|---|
| task | {task} |
| predecessor | {predecessor} |
| layers | {n_layer} |
| replacing rate | {schedule} |
| saved after | {step:,} optimiser steps |
| dev set | {metrics} |

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

The method is that of Canwen Xu, Wangchunshu Zhou, Tao Ge, Furu Wei and Ming Zhou, "BERT-of-Theseus: Compressing BERT by
Progressive Module Replacing", EMNLP 2020, [arXiv:2002.02925](https://arxiv.org/abs/2002.02925).
"""

REPLACED = "compressed from a fine-tuned model by progressive module replacing"
CUT = "trained from the first layers of a larger model, without replacing any module"


def model_card(state, name: str, task: str, predecessor: str, metrics: dict[str, float]) -> str:
    """The card, in Markdown, of the successor in a `TrainState` as it is now.

    Args:
        state: of a compression.
        name: of the successor.
        task, predecessor: in words.
        metrics: on the dev set; empty where it was not evaluated.
    """
    scores = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
    return CARD.format(
        name=f"{name}, a successor by BERT-of-Theseus",
        model_class=type(state.model).__name__,
        how=REPLACED if state.steps_with_predecessor() else CUT,
        task=task,
        predecessor=f"{predecessor} ({len(state.layers.predecessor)} layers)",
        n_layer=len(state.layers.successor),
        schedule=state.rate_schedule.describe(state.n_steps),
        step=state.step,
        metrics=scores or "not evaluated at this step",
    )

"""The README.md that a saved successor carries."""

CARD = """---
library_name: transformers
pipeline_tag: text-classification
tags:
- bert-of-theseus
---
# {name}

A `{model_class}` of {n_layer} layers, compressed from a fine-tuned model by progressive module replacing. It is an
ordinary model of `transformers`; nothing else is needed to load it.

| | |
|---|---|
| task | {task} |
| predecessor | {predecessor} |
| layers | {n_layer} |
| schedule | {schedule} |
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


def model_card(*, metrics: dict[str, float], **facts: object) -> str:
    """Markdown on a successor: `CARD` with these facts; without metrics it says that there was no evaluation."""
    scores = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    return CARD.format(metrics=scores or "not evaluated at this step", **facts)

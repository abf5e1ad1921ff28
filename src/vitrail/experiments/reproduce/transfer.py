"""Attention transfer: the target's logit is lowered by moving attention alone; where do the reasons go?"""

from typing import Any

from ...counterfactual.transfer import transfer as move_attention
from ...plotting.transfer import draw_transfer
from .registry import Question, needs, register_experiment

__all__ = ["transfer"]

SHOWN = (0, 5, 10, 20, 50)


@register_experiment(
    "transfer", wants="images; --target, --against; --steps (50), --lr (0.0004)", takes=("steps", "lr")
)
def transfer(question: Question) -> list[dict[str, Any]]:
    """The maps of target and opposing class while attention alone takes the target's logit down, and both curves."""
    needs(len(question.targets) < 2, "transfer lowers one class: name it with targets=, others with against=")
    steps = 50 if question.steps is None else question.steps
    lr = 4e-4 if question.lr is None else question.lr
    results = []
    for path in question.images:
        target, (opposing, *also) = question.target, question.against or (None,)
        shown = sorted({step for step in SHOWN if step < steps} | {steps})
        found = move_attention(
            question.model,
            path,
            target,
            opposing,
            also=[index for index in also if index is not None],
            steps=steps,
            lr=lr,
            snapshots=shown,
            progress=lambda done, total, path=path: question.report(f"{path.name}, attention", done, total),
        )
        file = question.save(draw_transfer(found), f"transfer.{path.stem}")
        logits = {
            found.class_name(index): {str(step): float(found.curve(index)[step]) for step in shown}
            for index in found.classes
        }
        results.append({"file": str(file), "image": str(path), "steps": steps, "lr": lr, "logits": logits})
    return results

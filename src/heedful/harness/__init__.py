"""Heedful inside other people's evaluation harnesses: lm-eval (`lm_eval_model`) and Inspect (`inspect_provider`).

Importing this imports neither of them.
"""

from __future__ import annotations

from heedful.errors import OptionError


def register() -> None:
    """Makes lm-eval know the model `heedful`; its code is imported when it is used.

    `lm_eval.simple_evaluate(model="heedful", model_args={"method": "directer"}, …)` works from then on. Raises
    `OptionError` without the eval extra.
    """
    try:
        import lm_eval.models  # noqa: F401 (lm-eval fills its registry only while that is empty)
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise OptionError(f"lm-eval needs the eval extra: pip install 'heedful[eval]' ({error})") from error
    if "heedful" not in model_registry:
        model_registry.register("heedful", target="heedful.harness.lm_eval_model:HeedfulLM")

"""Directer inside vLLM, by its official extension points alone: no fork, no patched file.

vLLM finds `register` and the logits processor through entry points, in every process that it starts. Importing this
package imports neither vLLM nor anything that only it needs.
"""

from heedful.vllm.arguments import NAME, Asked, read
from heedful.vllm.prompts import sampling_params, tokens_prompt
from heedful.vllm.registration import register

__all__ = ["NAME", "Asked", "read", "register", "sampling_params", "tokens_prompt"]

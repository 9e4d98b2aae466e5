"""The `heedful` command. Each sub-command is one module; this one turns errors into a line and an exit code."""

from __future__ import annotations

import logging
import sys

import typer

from heedful.cli import (
    ablation,
    batch,
    bench,
    chat,
    compare,
    evaluate,
    generate,
    harness,
    models,
    playground,
    profile,
    serve,
    spans,
    tune,
)
from heedful.errors import HeedfulError

# torchao, where it is installed, complains at import of kernels that this machine cannot have.
NOISY = ("torchao", "torch.utils._pytree")

# typer brings its own click, whose classes it does not export by name.
UsageFailure: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make a language model heed its instructions while it decodes.",
)
app.command("generate")(generate.generate)
app.command("compare")(compare.command)
app.command("batch")(batch.command)
app.command("chat")(chat.command)
app.command("spans")(spans.spans)
app.command("tune")(tune.command)
app.command("serve")(serve.serve)
app.command("playground")(playground.command)
app.add_typer(models.app, name="models")
evaluate.app.command("ablation")(ablation.command)
evaluate.app.command("lm-eval")(harness.lm_eval)
app.add_typer(evaluate.app, name="eval")
app.add_typer(profile.app, name="profile")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Runs the command; exits with 2 after an error's one line, with 130 after Ctrl-C."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        code = app(standalone_mode=False)
    except HeedfulError as error:
        print(f"heedful: error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except UsageFailure as error:
        message = getattr(error, "format_message", error.__str__)()
        print(f"heedful: error: {' '.join(message.split())} (see heedful --help)", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 141
    sys.exit(code or 0)

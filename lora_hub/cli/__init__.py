"""The command line: the group of commands and the one boundary at which errors become exit codes."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from lora_hub import __version__
from lora_hub.cli import (
    cache,
    check,
    compose,
    demo,
    extract,
    inspect,
    keys,
    look,
    merge,
    plugins,
    schema,
    signatures,
    transfer,
    trust,
)
from lora_hub.cli.output import shown
from lora_hub.errors import LoraHubError, UsageError
from lora_hub.files import machine_error

INTERRUPTED = 130
COMPLETION = "_LORA_HUB_COMPLETE"  # how a shell asks for completions; click's convention


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 a bug of ours, 2 usage, 3 not found, 4 registry, 5 unsigned or not trusted, "
    "6 bytes or signature do not match, 7 refused by policy or lock, 8 malformed, 9 does not fit the base, "
    "10 the version exists with other content, 11 this machine, 130 interrupted.",
)
@click.version_option(__version__, prog_name="lora-hub")
def cli() -> None:
    """Version, sign, verify and ship LoRA adapters. What PEFT trains, lora-hub ships."""


for command in (
    *transfer.COMMANDS,
    *look.COMMANDS,
    inspect.inspect,
    check.check,
    *signatures.COMMANDS,
    compose.compose,
    merge.merge,
    keys.key,
    trust.trust,
    cache.cache,
    plugins.plugins,
    schema.schema,
    demo.demo,
    extract.extract,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # The Hub's client logs what a server says as it is, and every try; what matters of it is in our own errors.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    warnings.filterwarnings("ignore", module="huggingface_hub")
    words = list(sys.argv[1:] if arguments is None else arguments)
    completion = os.environ.get(COMPLETION)
    sys.exit(shell_complete(cli, {}, "lora-hub", COMPLETION, completion) if completion else run(words))


def run(words: list[str]) -> int:
    """Run the command that *words* spell and return its exit code; a bug of ours keeps its traceback."""
    try:
        # Not `cli.main`, which takes a closed pipe for an error, and knows nothing of NO_COLOR.
        with cli.make_context("lora-hub", list(words), color=_color()) as context:
            cli.invoke(context)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as missing:
        click.echo(missing.format_message(), err=True)
        return UsageError.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        return 0  # whoever read our output has enough
    except (click.ClickException, LoraHubError, OSError) as error:
        ours = _in_our_words(error)
        _say(ours, words)
        return ours.exit_code
    return 0


def _color() -> bool | None:
    """Return False where colour is unwanted (https://no-color.org), else None: let the terminal decide."""
    return False if os.environ.get("NO_COLOR") else None


def _in_our_words(error: click.ClickException | LoraHubError | OSError) -> LoraHubError:
    if isinstance(error, LoraHubError):
        return error
    if isinstance(error, OSError):
        return machine_error(error)
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "lora-hub"
    return UsageError(error.format_message(), hint=f"run `{path} --help`")


def _lines(text: str) -> str:
    """Return *text* so that nothing in it moves the cursor, but the ends of its lines."""
    return "\n".join(map(shown, text.split("\n")))


def _say(error: LoraHubError, words: list[str]) -> None:
    """Print *error* to stderr: for people, or as JSON if the command was asked for JSON."""
    if "--json" in words:
        document = {"error": {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}}
        click.echo(json.dumps(document), err=True)
        return
    click.echo(f"{click.style('error:', fg='red', bold=True)} {_lines(error.message)}", err=True, color=_color())
    if error.hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {_lines(error.hint)}", err=True, color=_color())

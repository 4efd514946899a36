"""The `distillog` command. Importing it, and every `--help`, loads neither Kafka nor NumPy nor a framework.

Commands import what they need inside their bodies. Errors end here: one line for those that are meant.
"""

from __future__ import annotations

import importlib
import logging
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import click

from distillog_command import PACKAGES
from pipeline import stop_signals
from pipeline.exit_codes import CRASHED, FINAL, PASSING
from pipeline.user_code import one_line, said
from schemas.errors import ChildLost, DistillogError, LoaderLost, ModelFailed

SUPERVISED = "distillog.supervised"
"""Key of a context's `meta` that a command sets whose exit code is read by a supervisor."""
_EXTRAS = {
    **dict.fromkeys(("onnx", "onnxruntime"), "teacher"),
    **dict.fromkeys(("onnxscript", "safetensors", "tomli_w", "torch"), "student"),
}
"""Package that not every machine has -> which of ours installs it."""


class Distillog(click.Group):
    """The main group: loads a command's module when it is called, and turns errors into exit codes."""

    LAZY: ClassVar[dict[str, tuple[str, str]]] = {
        "broker": ("pipeline.cli.broker:broker", "Run a local Kafka for development."),
        "topics": ("pipeline.cli.topics:topics", "Make, inspect, repair and delete streams."),
        "letters": ("pipeline.cli.letters:letters", "See what could not be labelled, and why."),
        "feed": ("pipeline.cli.feed:feed", "Publish a stream's work orders."),
        "teach": ("pipeline.cli.teach:teach", "Label work orders with an ONNX model."),
        "fleet": ("pipeline.cli.fleet:fleet", "Keep as many teach workers on this machine as are needed."),
        "codecs": ("pipeline.cli.codecs:codecs", "Measure what codecs keep of a teacher's outputs."),
        "verify": ("pipeline.cli.verify:verify", "Label some rows of every order again, and compare."),
        "capture": ("pipeline.cli.capture:capture", "Store a stream's soft targets as files."),
        "replay": ("pipeline.cli.replay:replay", "Make a stream of captured soft targets."),
        "tokenizer": ("pipeline.cli.tokenizer:tokenizer", "Make tokenizers of a folder's texts."),
        "runs": ("pipeline.cli.runs:runs", "Train, inspect, evaluate and export students."),
    }
    """name -> where the command is, and its short help, so that `--help` imports none of them"""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which a user meets them."""
        return list(self.LAZY)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.LAZY:
            return None
        module, _, attribute = self.LAZY[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.LAZY.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; its errors become one line on stderr and an exit code."""
        verbose = bool(ctx.params.get("verbose"))
        stop_signals.forget()
        try:
            result = super().invoke(ctx)
        except DistillogError as error:
            if verbose:
                click.echo(traceback.format_exc().rstrip(), err=True)
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(_of_supervised(error) if ctx.meta.get(SUPERVISED) else error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(stop_signals.INTERRUPTED)
        except click.Abort as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Ctrl-C at a question
                ctx.exit(stop_signals.INTERRUPTED)
            raise
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise  # click prints these, or is quiet about them
        except MemoryError as error:
            click.echo(f"error: the memory of this machine is not enough ({said(error)})", err=True)
            ctx.exit(CRASHED if ctx.meta.get(SUPERVISED) else 1)
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
                extra = _EXTRAS[error.name]
                click.echo(f"error: this needs the package {error.name}: `pip install 'distillog[{extra}]'`", err=True)
                ctx.exit(FINAL if ctx.meta.get(SUPERVISED) else 1)
            text = one_line(error)
            click.echo(f"error: unexpected {type(error).__name__}: {text}; this is a bug, please report it", err=True)
            click.echo(traceback.format_exc().rstrip(), err=True)
            ctx.exit(CRASHED if ctx.meta.get(SUPERVISED) else 1)
        except BaseException as error:  # never ours: code that a user brought ends no command as if all were done
            click.echo(f"error: code of a dataset, view or student raised {said(error)}", err=True)
            ctx.exit(1)
        if stop_signals.interrupted():
            ctx.exit(stop_signals.INTERRUPTED)
        return result


class _Stderr(logging.Handler):
    """Writes `warning: text`; looks stderr up each time, since a live display replaces it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, where anybody reads it: a thread that warns is not to end because nobody does."""
        with suppress(OSError):
            click.echo(f"{record.levelname.lower()}: {self.format(record)}", err=True)


def _configure_logging(verbose: bool) -> None:
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Stderr)]:
        root.removeHandler(handler)
    root.addHandler(_Stderr())
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.WARNING)
    # kafka-python warns about each reconnection; what matters of it is raised, and printed as one line.
    logging.getLogger("kafka").setLevel(logging.INFO if verbose else logging.CRITICAL)


@click.group(
    "distillog",
    cls=Distillog,
    context_settings={
        "auto_envvar_prefix": "DISTILLOG",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 120,
    },
)
@click.option(
    "--bootstrap-servers",
    metavar="HOST:PORT[,...]",
    envvar=["DISTILLOG_BOOTSTRAP_SERVERS", "KAFKA_BOOTSTRAP_SERVERS"],
    help="The Kafka cluster; without it the local broker, if one runs. [env: KAFKA_BOOTSTRAP_SERVERS]",
)
@click.option(
    "--kafka-config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Properties file with the cluster's SASL and TLS settings.",
)
@click.option("--verbose", is_flag=True, help="Log what happens, and show tracebacks.")
@click.version_option(package_name="distillog")
def main(bootstrap_servers: str | None, kafka_config: Path | None, verbose: bool) -> None:
    """Knowledge distillation over a durable log.

    Every option can be set in the environment: DISTILLOG_<COMMAND>_<OPTION>.
    """
    _configure_logging(verbose)


def _of_supervised(error: DistillogError) -> int:
    """Say with an exit code whether another process may fare better."""
    if isinstance(error, ChildLost | LoaderLost | ModelFailed):
        return CRASHED  # another process, or another device, may fare better; again and again is once too often
    return PASSING if error.passing else FINAL

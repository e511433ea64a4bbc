"""The command line as a whole: which verbs there are, and what becomes of their errors."""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

import kvshard
from kvshard.cli import collections, data, demo, faults, leaves, load, search, shards, slowlog, status, suggest, whatif
from kvshard.cli import run as run_verbs
from kvshard.cli.console import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, complain, exit_code_of, explain
from kvshard.errors import KvShardError


def build_app() -> App:
    """The `kvshard` command with all its verbs."""
    app = App(
        name="kvshard",
        help="A sharded, replicated key-value service with full-text search.",
        version=kvshard.__version__,
        help_format="plaintext",  # the default renders Markdown, and loading that takes as long as all the rest
        suppress_keyboard_interrupt=False,  # `run` tells that it was interrupted, with the exit code that shells expect
        help_epilogue="Exit codes: 0 ok, 1 not found or conflict, 2 usage, 3 unavailable.",
    )
    for verbs in (run_verbs, data, search, suggest, load, collections, status, leaves, shards, slowlog, faults, whatif, demo):
        verbs.register(app)
    return app


def run(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. An error that a user may expect is one line on stderr."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        result = build_app()(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        complain(_first_line(error))
        print("try `kvshard --help`, or `kvshard VERB --help`", file=sys.stderr)
        return EXIT_USAGE
    except KvShardError as error:
        explain(error)
        return exit_code_of(error)
    except BrokenPipeError:
        # The reader of our output had enough (`kvshard scan | head`). Nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return EXIT_USAGE
    except KeyboardInterrupt:
        complain("interrupted")
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else EXIT_OK


def _first_line(error: CycloptsError) -> str:
    # cyclopts puts a hint such as 'Did you mean "search"?' into the same text.
    return " ".join(str(error).split())

"""Where log lines go in a program that uses the client."""

import structlog


def hand_logs_to_the_program() -> None:
    """Send the client's log lines to the standard library's logging, under their modules' names, as other libraries do.

    A program that has configured structlog keeps what it has. Unconfigured, structlog prints every line to the standard output,
    where they would get between what the program itself prints.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )

"""The review page of an audit, served: what `vitrail audit --review` does."""

import os
import sys

from vitrail.cli.console import show
from vitrail.cli.serving import admission_of, ended_by_signals, listening, open_page, say_where, serve_until_ended

__all__ = ["review"]

HOST = "127.0.0.1"


def review(
    folder: str | os.PathLike[str],
    *,
    port: int = 7861,
    no_token: bool = False,
    no_browser: bool = False,
) -> None:
    """Serves the page on which one works through the suspects of an audit, until Ctrl-C or SIGTERM.

    Args:
        folder: where `vitrail audit` wrote the audit.
        port: the port to serve at, on this machine alone; 0 for any free one.
        no_token: admits every user of this machine, without the token in the address.
        no_browser: does not open the page in a browser.

    Raises:
        RunFolderError: for another folder than an audit's.
        RunFolderInUseError: where another process has its decisions.
        OptionError: for a port that cannot be served at, and where a package is missing.
    """
    try:
        admission = admission_of(HOST, None, no_token=no_token)
        with listening(HOST, port) as opened, ended_by_signals():
            from vitrail.app.review import Review
            from vitrail.app.review_server import review_application
            from vitrail.audit.decisions import reviewing
            from vitrail.audit.result import read_audit

            audit = read_audit(folder)
            with reviewing(audit) as decisions:
                server = review_application(Review(audit, decisions), host=HOST, admission=admission)
                address = say_where(admission, opened, HOST, what="The review")
                decided = sum(one.image in decisions.current for one in audit.suspects)
                show(f"{decided} of {len(audit.suspects)} suspects are decided")
                if not no_browser:
                    open_page(admission, address)
                status = serve_until_ended(server, opened)
    except KeyboardInterrupt:  # while the audit was read
        show()
        show("ended")
        return
    if status:
        sys.exit(status)

"""The two ways in which a command can fail; the command line turns them into exit codes (2 and 1)."""


class RequestError(Exception):
    """The request is wrong: one sentence saying what, what was given, what is allowed. Exit code 2, nothing written."""


class HubUnreachable(RequestError):
    """A model or data set of the Hub that is not in the local cache, while the Hub cannot be reached."""


class RunError(Exception):
    """Something failed on the way: what, where its log is, how to go on. Exit code 1, finished work is kept."""


def require(condition: bool, sentence: str) -> None:
    """Refuse a request that does not meet a condition.

    Args:
        condition: that must hold.
        sentence: what is wrong otherwise, without its full stop.

    Raises:
        RequestError: it does not hold.
    """
    if not condition:
        raise RequestError(sentence + ".")

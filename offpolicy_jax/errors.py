"""The exception that a user's mistake raises, and the kind of it that stops a run."""


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong and what to do; commands print it and exit with 2."""


class Diverged(UserError):
    """Losses or parameters of a seed are not finite any more."""

"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong and what to do; commands print it and exit with 2."""

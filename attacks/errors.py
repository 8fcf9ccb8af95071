"""The exception for input that a person can mend; the command line turns it into exit code 2."""


class BadInput(ValueError):
    """Something handed in is wrong: one sentence says what was expected, what was found and what to do next."""

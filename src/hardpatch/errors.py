"""What the command line reports in one line, without a traceback, with exit code 2."""


class UserError(ValueError):
    """A mistake in what the user gave: the message names the argument, what was expected, what came and what to do."""

"""What the command line reports in one line, without a traceback, with exit code 2."""


class UserError(ValueError):
    """A mistake in what the user gave: the message names the argument, what was expected, what came and what to do."""


class TrainingError(RuntimeError):
    """A run that could not go on: the message says at which step, why, and what to do. Exit code 1, without a
    traceback."""

"""The one exception that users see."""


class UserError(Exception):
    """Something the user can mend. The message is one sentence: what was wrong, what was given, what to do."""

"""The one exception that is meant for the user."""


class UserError(Exception):
    """Something a user can put right: the message is one line that says what is wrong, where, and what to do."""

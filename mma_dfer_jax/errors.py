"""Errors that a user can mend: they end a command as a message and exit status 1, never as a traceback."""


class UserError(ValueError):
  """Something given to the program does not fit: says what was given, what is allowed, what to do."""


def shown(name: object) -> str:
  """A name out of a file as it can stand in a message: no control characters, not endless."""
  text = str(name)
  return text[:200].encode("unicode_escape").decode() + "…" * (len(text) > 200)


def listed(title: str, problems: list[str], advice: str = "") -> UserError:
  """One error for all problems found, so that nobody mends them one run at a time.

  Args:
    title: what was being checked, without a final colon.
    problems: one line each; must not be empty.
    advice: what to do about it, added as a last line.
  """
  lines = [f"{title}:", *(f"  - {problem}" for problem in problems)]
  return UserError("\n".join([*lines, advice] if advice else lines))

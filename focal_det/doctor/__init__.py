"""Look at this installation: what it is, what is wrong with it, and the command that fixes it.

Nothing that may be missing or broken is imported at the top of a module here: it is tried where it is looked at, and
whatever is wrong with it is a finding and not an error.
"""
